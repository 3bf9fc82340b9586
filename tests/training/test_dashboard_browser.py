"""The dashboard in a browser: each page shows what it is for, by names that say it, and without an error."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browser import browser, complaints, resize  # noqa: F401  browser is a fixture
from dashboard_server import DENSE, FINDINGS, RUN, Server, server  # noqa: F401  server is a fixture

from switch_lm.training.boards.tensorboard import chart_layout
from switch_lm.training.callbacks.dashboard import NO_METRICS

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser

WITHIN_S = 30
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
IMAGES = WALK + "return images;"  # the widths of those that are loaded


@pytest.fixture
def page(browser: Chrome) -> Iterator[Chrome]:  # noqa: F811
    """The browser with nothing opened; the test fails if what it opens writes an error to the console."""
    resize(browser, 1280, 4000)  # what lies further below is not drawn before it is scrolled to
    browser.get("about:blank")
    complaints(browser)  # those of the page before
    yield browser
    assert complaints(browser) == []


def opened(page: Chrome, server: Server, name: str, *awaited: str) -> str:  # noqa: F811
    """Opens a page of the dashboard and waits for texts that it is to show; all that it shows then."""
    page.get(f"{server.url}/#{name}")
    deadline = time.monotonic() + WITHIN_S
    while missing := [text for text in awaited if text not in (shown := str(page.execute_script(SHOWN)))]:
        assert time.monotonic() < deadline, f"{name} does not show {missing} but {shown}"
        time.sleep(0.2)
    return shown


def test_custom_scalars_open_with_an_overview_whose_charts_have_lines(page: Chrome, server: Server) -> None:  # noqa: F811
    layout = chart_layout(range(2))
    shown = opened(page, server, "custom_scalars", *layout, *layout["overview"])
    matches = dict(zip(layout["overview"], (8, 2, 2, 2, 2, 2), strict=True))  # lines of both runs together
    places = [shown.index(title) for title in layout["overview"]]
    assert places == sorted(places) and shown.index("overview") < places[0] < shown.index("layer 00")
    for title, count in matches.items():
        found = re.search(r"Matches \((\d+)\)", shown[shown.index(title) :])  # below the chart
        assert found and int(found[1]) == count, title


def test_images_show_the_load_first_and_an_atlas_of_each_layer(page: Chrome, server: Server) -> None:  # noqa: F811
    tags = "routing/expert_load_over_time", "routing/layer_00_atlas", "routing/layer_01_atlas"
    shown = opened(page, server, "images", *tags, "step 6")
    assert sorted(tags, key=shown.index) == list(tags)
    widths = page.execute_script(IMAGES)
    assert len(widths) == 3 and min(widths) > 600


def test_texts_begin_with_the_certificate_as_a_table(page: Chrome, server: Server) -> None:  # noqa: F811
    cells = " ".join(value for f in FINDINGS for value in (f.check, str(f.verdict), f.measured, f.meaning))
    shown = opened(page, server, "text", "tag: certificate/text_summary", cells)
    names = "certificate", "computation", "configuration", "sample"
    assert sorted(names, key=shown.rindex) == list(names)


def test_the_configuration_and_samples_can_be_read(page: Chrome, server: Server) -> None:  # noqa: F811
    wanted = "tag: configuration/text_summary", "tag: sample/text_summary", "num_experts: 3", "step 6"
    assert opened(page, server, "text&tagFilter=configuration|sample", *wanted).count("num_experts: 3") == 2


def test_hyperparameters_show_a_row_for_each_run(page: Chrome, server: Server) -> None:  # noqa: F811
    shown = opened(page, server, "hparams", RUN, DENSE, "hp/val_loss")
    assert all(name in shown for name in NO_METRICS)
    assert "model.capacity_factor" in shown and "TABLE VIEW" in shown.upper()


def test_scalars_are_in_groups(page: Chrome, server: Server) -> None:  # noqa: F811
    groups = ("health", "hp", "moe", "optim", "perf", "train", "val")
    shown = opened(page, server, "scalars", "health/layer_00/balance_gradient")
    assert all(re.search(rf"\b{group} \d+\b", shown) for group in groups)
