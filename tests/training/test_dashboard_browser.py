"""The dashboard in a browser: each page shows what it is for, by names that say it, and without an error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browser import browser, complaints, resize  # noqa: F401  browser is a fixture
from dashboard_server import DENSE, FINDINGS, LAYERS, RUN, Server, server  # noqa: F401  server is a fixture

from switch_lm.dashboard import PINNED

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser

WITHIN_S, WIDTH = 30, 1280
# TensorBoard's pages are web components: what they show lies in shadow roots, which no selector reaches into.
WALK = """
const found = [], images = [];
const visit = (node) => {
  if (node.nodeType === Node.TEXT_NODE && node.textContent.trim()) found.push(node.textContent.trim());
  if (["STYLE", "SCRIPT", "TEMPLATE", "NOSCRIPT"].includes(node.nodeName)) return;
  if (node.nodeType === Node.ELEMENT_NODE && !node.checkVisibility()) return;
  if (node.nodeName === "IMG" && node.naturalWidth) images.push(node.naturalWidth);
  for (const child of [...(node.shadowRoot?.childNodes ?? []), ...node.childNodes]) visit(child);
};
visit(document.body);
"""
SHOWN = WALK + 'return found.join(" ").replace(/\\s+/g, " ");'
# By text: left and top edge of the first one that says it, and of the last one.
PLACES = (
    WALK.replace(
        "found.push(node.textContent.trim())",
        "{ const range = document.createRange(); range.selectNode(node); const box = range.getBoundingClientRect();"
        " found.push([node.textContent.trim(), [box.left, box.top]]); }",
    )
    + "return [Object.fromEntries(found.toReversed()), Object.fromEntries(found)];"
)
IMAGES = WALK + "return images;"  # the widths of those that are loaded


@pytest.fixture
def page(browser: Chrome) -> Iterator[Chrome]:  # noqa: F811
    """The browser with nothing opened; the test fails if what it opens writes an error to the console."""
    resize(browser, WIDTH, 4000)  # what lies further below is not drawn before it is scrolled to
    browser.get("about:blank")
    complaints(browser)  # those of the page before
    yield browser
    assert complaints(browser) == []


def opened(page: Chrome, server: Server, name: str, *awaited: str) -> str:  # noqa: F811
    """Opens a page of the dashboard and waits for texts that it is to show; all that it shows then."""
    page.get(f"{server.url}/#{name}" if name else server.url)
    deadline = time.monotonic() + WITHIN_S
    while missing := [text for text in awaited if text not in (shown := str(page.execute_script(SHOWN)))]:
        assert time.monotonic() < deadline, f"{name} does not show {missing} but {shown}"
        time.sleep(0.2)
    return shown


def test_the_plain_address_opens_on_the_pinned_charts_side_by_side(page: Chrome, server: Server) -> None:  # noqa: F811
    titles = [tag.replace("/", " /") for tag in PINNED]  # a group is a text of its own
    shown = opened(page, server, "", "Pinned 4 cards", *titles)
    charts = shown[shown.index("Pinned") :]
    places = [charts.index(title) for title in titles]
    assert places == sorted(places) and places[-1] < charts.index("health")
    left, right = (page.execute_script(PLACES)[0][group] for group in ("train", "val"))
    assert left[1] == right[1] and left[0] < right[0]


def test_images_show_each_layers_experts_before_drops_and_characters(page: Chrome, server: Server) -> None:  # noqa: F811
    names = ("load", "share_dropped", "which_characters")
    tags = [f"routing/{name}/layer_{layer:02d}" for name in names for layer in range(LAYERS)]
    shown = opened(page, server, "images", *tags, "step 6")
    assert sorted(tags, key=shown.index) == tags
    widths = page.execute_script(IMAGES)
    assert len(widths) == len(tags) and min(widths) > 600


def test_texts_begin_with_the_sample_and_the_certificate_is_a_table(page: Chrome, server: Server) -> None:  # noqa: F811
    cells = " ".join(value for f in FINDINGS for value in (f.check, str(f.verdict), f.measured, f.meaning))
    shown = opened(page, server, "text", "tag: summary/certificate/text_summary", cells)
    names = "sample", "summary/certificate", "summary/computation", "summary/configuration"
    places = [shown.index(f"tag: {name}/text_summary") for name in names]
    assert places == sorted(places)


def test_the_configuration_and_samples_can_be_read(page: Chrome, server: Server) -> None:  # noqa: F811
    wanted = "tag: summary/configuration/text_summary", "tag: sample/text_summary", "num_experts: 8", "step 6"
    assert opened(page, server, "text&tagFilter=configuration|sample", *wanted).count("num_experts: 8") >= 2


def test_hyperparameters_show_a_row_for_each_run_with_its_figures_on_screen(page: Chrome, server: Server) -> None:  # noqa: F811
    shown = opened(page, server, "hparams", "TABLE VIEW", RUN, DENSE, "dropped")
    assert "switch_every" in shown
    first, last = page.execute_script(PLACES)  # among the filters at the left, or in the table
    columns = [max(first[name][0], last[name][0]) for name in ("cap", "switch_every", "val_loss", "dropped")]
    assert columns == sorted(columns) and columns[-1] < WIDTH - 60


def test_scalars_are_in_groups(page: Chrome, server: Server) -> None:  # noqa: F811
    groups = "health 4", "moe 82", "optim 5", "perf 3", "train", "val 5"  # one tag is not counted
    opened(page, server, "scalars", "health/layer_00/language_gradient", *groups)
