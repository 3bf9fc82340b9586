"""A real report, of stored runs with a failed and a half-finished one among them, in a browser and on a phone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import browser, complaints, resize, show  # noqa: F401  browser is a fixture
from report_runs import DENSE, DROPLESS, ONE, config_of, write_run, write_sweep

from switch_lm.reporting.write import write_report

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser


def test_a_report_shows_all_its_pictures_and_tables_on_a_screen_and_on_a_phone(
    browser: Chrome,  # noqa: F811
    tmp_path: Path,
) -> None:
    losses = {"dense": [1.5, 1.51, 1.52], "one": [1.48, 1.5, 1.49], "dropless": [1.47, 1.48, 1.5]}
    sweep = write_sweep(tmp_path / "sweep", {"dense": DENSE, "one": ONE, "dropless": DROPLESS}, losses)
    write_run(sweep / "half", config_of(3, **ONE), None, curve=[(25, 2.0, 25.0)])
    (sweep / "failed").mkdir()
    (sweep / "failed" / "job.json").write_text(json.dumps({"job": 10, "status": "failed", "error": "too hot"}))
    written = write_report([sweep])
    show(browser, written.page.read_text(encoding="utf-8"), tmp_path / "report.html")
    drawings = browser.find_elements("css selector", "figure svg")
    assert len(drawings) == len(list(written.pictures.glob("*.png"))) >= 8
    for width in (1280, 360):
        resize(browser, width, 740)
        assert all(min(drawing.size["width"], drawing.size["height"]) > 150 for drawing in drawings)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        places = [tile.location for tile in browser.find_elements("css selector", "header .tile")]
        assert (
            len({(at["x"], at["y"]) for at in places}) == 4 and len({at["y"] for at in places}) == (1, 4)[width == 360]
        )
        charts = [figure.location for figure in browser.find_elements("css selector", "section .chart")]
        assert len({at["x"] for at in charts}) == (2, 1)[width == 360]
    resize(browser, 1280, 740)
    fits = "return [...document.querySelectorAll('.scroll')].every(box => box.scrollWidth <= box.clientWidth)"
    assert browser.execute_script(fits)
    names = [term.text for term in browser.find_elements("css selector", "header .tile dt")]
    assert names == ["Best", "Cheapest", "Dropped", "Seeds"]
    assert len(browser.find_elements("css selector", "figure svg g > title")) > 50  # values under the pointer
    first = browser.find_element("css selector", "table thead button")
    first.send_keys("\n")
    heading = browser.find_element("css selector", "table thead th")
    assert heading.get_attribute("aria-sort") == "ascending"
    text = browser.find_element("tag name", "body").text
    assert "too hot" in text and "step 25 of 100" in text
    buttons = browser.find_elements("css selector", "table thead button")
    assert len(buttons) > 20  # every column of every table can be sorted
    assert complaints(browser) == []
