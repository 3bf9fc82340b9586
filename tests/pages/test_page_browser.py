"""The page in a browser: pictures shown, tables sorted, both themes readable, and a phone wide enough for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import browser, complaints, prefer, resize, show  # noqa: F401  browser is a fixture

from switch_lm.pages.document import Bullets, Cell, Code, Document, Picture, Section, Series, Table, Text
from switch_lm.pages.page import to_html

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

pytestmark = pytest.mark.browser

LONG = "switch-8x-cf1.25-alpha0.01-no-drop-overflow-reroute-second-choice_seed1"
X = tuple(float(i) for i in range(1, 7))
FRONTIER = Series("Switch", X, X[::-1], labels=("cf",) * 6, line=False)
PICTURES = tuple(
    Picture(name, LONG, "falls", "step", "loss", (FRONTIER, Series("dense", X, X))) for name in ("first", "second")
)
ROWS = (
    ("beta", "10", Cell("2.0 ± 0.1", 2.0), "a"),
    ("alpha", "9", Cell("diverged", math.inf), "b"),
    ("10-late", "-", Cell("1.5 ± 0.9", 1.5), "a"),
    ("9-early", "1,000", Cell("–"), "b"),
    (LONG, "−3", Cell("10.0 ± 0.1", 10.0), "a"),
)
CELLS = tuple(tuple(Cell(cell) if isinstance(cell, str) else cell for cell in row) for row in ROWS)
WIDE = Table(LONG, tuple(f"heading_number_{i}" for i in range(12)), (tuple(Cell("0.123456") for _ in range(12)),) * 3)
DOCUMENT = Document(
    f"A report about {LONG}",
    "What is to be known.",
    (
        Section("Pictures", (Text(f"Text with `{LONG}`."), *PICTURES)),
        Section("Tables", (Table("Runs", ("run", "count", "loss", "group"), CELLS, "A note."), WIDE)),
        Section("Code", (Code(f"python -m switch_lm.train {LONG} {LONG}"), Bullets((LONG, "short")))),
    ),
)
NAMES = "return [...document.querySelector('table').tBodies[0].rows].map(row => row.cells[0].textContent)"
CONTRAST = """
const TEXTS = "h1, h2, p, li, a, code, pre, th, td, caption, figcaption, text, button";
const seen = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
const light = (rgb) => rgb.map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = (element) => {
  for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (colour.startsWith("rgb(")) return colour;
  }
  return "rgb(255, 255, 255)";
};
const least = {};
for (const element of document.querySelectorAll(TEXTS)) {
  const style = getComputedStyle(element);
  const ink = light(seen(element.tagName === "text" ? style.fill : style.color)) + 0.05;
  const paper = light(seen(ground(element))) + 0.05;
  const name = element.tagName.toLowerCase();
  least[name] = Math.min(least[name] ?? 99, Math.max(ink, paper) / Math.min(ink, paper));
}
return [getComputedStyle(document.body).backgroundColor, least];
"""


@pytest.fixture
def page(browser: Chrome, tmp_path: Path) -> Chrome:  # noqa: F811
    """The browser with the report opened, its theme not yet chosen."""
    prefer(browser, "light")
    show(browser, to_html(DOCUMENT), tmp_path / "report.html")
    browser.execute_script("try { localStorage.clear() } catch {}")
    browser.refresh()
    return browser


def headings(page: Chrome) -> list[WebElement]:
    return page.find_elements("css selector", "table:first-of-type thead th")[:4]


def test_every_picture_is_visible_and_the_console_is_silent(page: Chrome) -> None:
    drawings = page.find_elements("css selector", "figure svg")
    assert len(drawings) == 2
    for drawing in drawings:
        assert drawing.is_displayed()
        assert min(drawing.size["width"], drawing.size["height"]) > 200
    assert complaints(page) == []


def test_a_page_on_a_phone_does_not_scroll_sideways(page: Chrome) -> None:
    resize(page, 360, 740)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 360
    assert page.execute_script("return document.body.scrollWidth") <= 360
    boxes: list[list[int]] = page.execute_script(
        "return [...document.querySelectorAll('.scroll, pre')].map(box => [box.scrollWidth, box.clientWidth])"
    )
    assert any(inner > outer for inner, outer in boxes)  # the wide ones scroll in their own box
    for drawing in page.find_elements("css selector", "figure svg"):
        assert 320 < drawing.size["width"] <= 350
    assert complaints(page) == []


@pytest.mark.parametrize(
    ("column", "upwards", "downwards"),
    [
        (0, [3, 2, 1, 0, 4], [4, 0, 1, 2, 3]),
        (1, [4, 1, 0, 3, 2], [3, 0, 1, 4, 2]),  # the blank is last both ways
        (2, [2, 0, 4, 1, 3], [1, 4, 0, 2, 3]),
        (3, [0, 2, 4, 1, 3], [1, 3, 0, 2, 4]),  # equal ones keep their order
    ],
)
@pytest.mark.parametrize("way", ["click", "keyboard"])
def test_a_table_is_sorted_up_and_down(
    page: Chrome, way: str, column: int, upwards: list[int], downwards: list[int]
) -> None:
    names = [str(row[0]) for row in ROWS]
    for order, direction in ((upwards, "ascending"), (downwards, "descending"), (upwards, "ascending")):
        heading = headings(page)[column]
        button = heading.find_element("tag name", "button")
        if way == "click":
            button.click()
        else:
            page.execute_script("arguments[0].focus()", button)
            button.send_keys("\ue007")  # Enter
        assert page.execute_script(NAMES) == [names[i] for i in order]
        assert [h.get_dom_attribute("aria-sort") for h in headings(page)].count(direction) == 1
        assert heading.get_dom_attribute("aria-sort") == direction
    assert complaints(page) == []


def test_both_themes_are_readable_and_differ(page: Chrome) -> None:
    seen: dict[str, Any] = {}
    for scheme in ("light", "dark"):
        prefer(page, scheme)
        seen[scheme], least = page.execute_script(CONTRAST)
        assert {"h1", "p", "code", "td", "text", "button"} <= least.keys()
        assert {name: ratio for name, ratio in least.items() if ratio < 4.5} == {}
    assert seen["light"] != seen["dark"]


def test_the_theme_can_be_chosen_against_the_system_and_is_remembered(page: Chrome) -> None:
    stored = "return localStorage.getItem('switch_lm-theme')"
    grounds: list[str] = []
    for label in ("Auto", "Dark", "Light", "Auto"):
        button = page.find_element("id", "theme")
        assert button.text == label
        assert not grounds or page.execute_script(stored) == label.lower()
        grounds.append(page.execute_script(CONTRAST)[0])
        button.click()
    auto, dark, light, again = grounds
    assert auto == light == again != dark
    for theme in ("dark", "light"):
        page.execute_script(f"localStorage.setItem('switch_lm-theme', '{theme}')")
        page.refresh()
        kept = (
            page.execute_script(stored) or "auto"
        )  # a busy Chromium can lose what a file stored; the page can't help it
        assert page.find_element("id", "theme").text == kept.capitalize()
        assert page.execute_script(CONTRAST)[0] == {"dark": dark, "light": light, "auto": auto}[kept]
    assert complaints(page) == []


def test_a_script_that_came_in_through_a_body_is_not_run(browser: Chrome, tmp_path: Path) -> None:  # noqa: F811
    html = to_html(DOCUMENT).replace("<main>", "<main><script>document.title = 'evil'</script>")
    show(browser, html, tmp_path / "evil.html")
    assert browser.title != "evil"
    assert complaints(browser) != []
