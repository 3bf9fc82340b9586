"""A headless Chromium for the tests of pages: `from browser import browser` gives a test module the fixture."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

FLAGS = (
    "--headless=new",
    "--no-sandbox",  # containers do without it
    "--disable-gpu",
    "--disable-dev-shm-usage",
    # no word with the world
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def start(profile: Path) -> Iterator[Chrome]:
    """A Chromium that keeps what it stores in `profile`, and what pages write to the console."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(executable_path=shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One browser for the module's tests; they are skipped where it cannot be had."""
    pytest.importorskip("selenium", reason="selenium is not installed: pip install 'switch_lm[test]'")
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    with start(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


def show(browser: Chrome, html: str, file: Path, *, width: int = 1280, height: int = 900) -> None:
    """Opens the page from a file, in a window of that size; chromium's own window has a least width, this has none."""
    file.write_text(html, encoding="utf-8")
    resize(browser, width, height)
    complaints(browser)  # those of the page before
    browser.get(file.as_uri())


def resize(browser: Chrome, width: int, height: int) -> None:
    """Gives the page that size in CSS pixels."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def prefer(browser: Chrome, scheme: str) -> None:
    """Makes the system's colour scheme `light` or `dark`."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def complaints(browser: Chrome) -> list[str]:
    """The errors on the console since the page was opened."""
    entries: list[dict[str, Any]] = browser.get_log("browser")  # type: ignore[no-untyped-call]
    return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]
