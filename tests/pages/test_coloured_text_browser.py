"""The coloured text in a browser: what is seen, pointed at and typed, in both themes, on a phone and on paper."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import browser, complaints, prefer, resize, show  # noqa: F401  browser is a fixture

from switch_lm.pages.coloured_text import NOBODY, PAGE, LayerText, Odds, coloured_text
from switch_lm.pages.page import render

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = pytest.mark.browser

TEXT = "ROMEO:\nTo be, or <not> & so.\n" + "The quick brown fox; the end. " * 6
N = len(TEXT)
FIRST = LayerText(  # each expert two characters long
    "layer 00", 8, [i // 2 % 8 for i in range(N)], [0.6] * N, [7 - i // 2 % 8 for i in range(N)], [0.3] * N
)
SECOND = LayerText("layer 01", 64, [NOBODY] + [63 - i % 64 for i in range(1, N)], [1.0] * N, [NOBODY] * N, [0.0] * N)
ODDS = [None] * 6 + [Odds(0.5 ** (i % 9), (("e", 0.25), ("\n", 0.0004))) for i in range(6, N)]
CELLS = "return [...document.querySelectorAll('.letters > span')].slice(0, arguments[0])"
GROUNDS = f"{CELLS}.map(cell => getComputedStyle(cell).backgroundColor)"
MARKS = f"{CELLS}.map(cell => getComputedStyle(cell, '::after').content.match(/\\d+|[A-E]/)?.[0] ?? null)"
TOGETHER = "return document.querySelector('.letters').textContent"
CONTRAST = """
const light = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
  .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0.05);
const paper = getComputedStyle(document.body).backgroundColor;
const ratio = (ink, ground) => {
  const [a, b] = [light(ink), light(ground.endsWith(", 0)") ? paper : ground)].sort((x, y) => y - x);
  return a / b;
};
return [...document.querySelectorAll(".coloured :is(span, b, p, legend, label, .about)")].flatMap(element => {
  const style = getComputedStyle(element), mark = getComputedStyle(element, "::after");
  const ground = (e) => e === document.body ? paper : getComputedStyle(e).backgroundColor.endsWith(", 0)")
    ? ground(e.parentElement) : getComputedStyle(e).backgroundColor;
  const ratios = [[element.className, ratio(style.color, ground(element))]];
  if (element.dataset.mark) ratios.push(["mark", ratio(mark.color, ground(element.parentElement))]);
  return ratios;
});
"""


def page_of(text: str, layers: list[LayerText], **more: Any) -> str:
    return render("Coloured", f"<main>{coloured_text('text', text, layers, **more)}</main>")


@pytest.fixture
def page(browser: Chrome, tmp_path: Path) -> Chrome:  # noqa: F811
    """The browser with a text of one page, of two layers and odds."""
    prefer(browser, "light")
    show(browser, page_of(TEXT, [FIRST, SECOND], odds=ODDS), tmp_path / "coloured.html")
    return browser


def choose(page: Chrome, label: str) -> None:
    page.find_element("xpath", f"//fieldset//label[.='{label}']/input").click()


def press(page: Chrome, *keys: str) -> None:
    box = page.find_element("css selector", ".letters")
    page.execute_script("arguments[0].focus()", box)
    box.send_keys(*keys)


def announced(page: Chrome) -> str:
    return page.find_element("css selector", ".about").text


def hover(page: Chrome, i: int) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(page).move_to_element(page.execute_script(CELLS, N)[i]).perform()


RIGHT, LEFT, UP, DOWN, END, HOME, PAGE_DOWN, PAGE_UP, ENTER, ESCAPE = (
    "\ue014", "\ue012", "\ue013", "\ue015", "\ue010", "\ue011", "\ue00f", "\ue00e", "\ue007", "\ue00c",
)  # fmt: skip


def test_the_text_is_shown_as_it_is_with_a_colour_and_a_number_where_the_expert_changes(page: Chrome) -> None:
    assert page.execute_script(TOGETHER) == TEXT
    grounds = page.execute_script(GROUNDS, 18)
    assert grounds[0::2] == grounds[1::2]  # experts of two characters each
    assert len(set(grounds[:16])) == 8
    assert grounds[16] == grounds[0]  # expert 0 again
    assert page.execute_script(MARKS, 6) == ["0", None, "1", None, "2", None]
    assert complaints(page) == []


def test_an_accent_stays_with_its_base_and_each_is_announced(browser: Chrome, tmp_path: Path) -> None:  # noqa: F811
    text = "e\u0301x\n\u0301\x1b\u202e\r\n👩\u200d👧שלום"
    n = len(text)
    layers = [LayerText("layer 00", 64, list(range(n)), [0.5] * n, [NOBODY] * n, [0.0] * n)]
    show(browser, page_of(text, layers, odds=[Odds(0.5, (("א", 0.2),))] * n), tmp_path / "accents.html")
    cells = browser.execute_script(f"{CELLS}.map(cell => cell.textContent)", n)
    assert cells == ["e\u0301", "x", "", "◌\u0301", "\\x1b", "\\u202e", "\\r", "", "👩\u200d👧", *"שלום"]
    hover(browser, 0)
    assert announced(browser).startswith("“e” layer 00: expert 0,")
    assert "character 1 ◌\u0301 layer 00: expert 1," in announced(browser)
    press(browser, HOME, RIGHT)
    assert announced(browser).startswith("◌\u0301 layer 00: expert 1,") and announced(browser).endswith("character 2")
    press(browser, END)
    isolated = browser.execute_script("return [...document.querySelectorAll('.about bdi')].map(b => b.textContent)")
    assert isolated == ["ם", "א"] and complaints(browser) == []


def test_all_layers_are_stripes_below_each_character_and_an_expert_of_one_is_isolated(
    browser: Chrome,  # noqa: F811
    tmp_path: Path,
) -> None:
    prefer(browser, "light")
    show(browser, page_of(TEXT, [FIRST, SECOND], odds=ODDS, first=-1), tmp_path / "all.html")
    stripes = f"{CELLS}.map(cell => [...cell.querySelectorAll('i')].map(stripe => stripe.className))"
    assert browser.execute_script(TOGETHER) == TEXT and browser.execute_script(MARKS, 6) == [None] * 6
    every = [["expert-0", ""], ["expert-0", "expert-6"], ["expert-1", "expert-5"]]  # 62 and 61 have the colours 6 and 5
    assert browser.execute_script(stripes, 3) == every
    boxes = (
        "return [...arguments[0].querySelectorAll('i')].map(i => i.getBoundingClientRect()).map(b => [b.top, b.width])"
    )
    cell = browser.execute_script(CELLS, 2)[1]
    (first, width), (second, same) = browser.execute_script(boxes, cell)
    assert cell.rect["y"] < first < second and width == same == pytest.approx(cell.rect["width"], abs=0.5)
    key = browser.find_element("css selector", ".key-name").text
    assert key.startswith("Stripes, from the top: layer 00, layer 01.")
    assert key.endswith("Click an expert to isolate it; Escape shows all again.")
    assert [b.text for b in browser.find_elements("css selector", ".key b")] == ["layer 00", "layer 01"]
    assert len(browser.find_elements("css selector", ".key button")) == 8 + 64
    button = browser.find_element("css selector", "[aria-label^='Show only layer 01, expert 62,']")
    browser.execute_script("arguments[0].focus()", button)
    button.send_keys(ENTER)
    assert button.get_dom_attribute("aria-pressed") == "true"
    assert browser.execute_script(stripes, 3) == [["", ""], ["", "expert-6"], ["", ""]]
    button.send_keys(ESCAPE)
    assert browser.execute_script(stripes, 3) == every and button.get_dom_attribute("aria-pressed") == "false"
    hover(browser, 9)
    assert announced(browser).startswith(
        "space layer 00: expert 4, gate 0.60, second choice 3 (0.30) layer 01: expert 54"
    )
    choose(browser, "layer 00")
    assert browser.execute_script(stripes, 2) == [[], []] and browser.execute_script(MARKS, 2) == ["0", None]
    assert complaints(browser) == []


def test_the_text_can_be_copied_as_it_is(page: Chrome) -> None:
    page.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite"]})  # to read it
    page.execute_script("document.querySelector('.copy').focus()")
    button = page.switch_to.active_element
    button.send_keys(ENTER)
    read = "navigator.clipboard.readText().then(arguments[0], error => arguments[0](String(error)))"
    assert page.execute_async_script(read) == TEXT
    assert button.text == "Copied" and complaints(page) == []
    assert page.switch_to.active_element == button and page.find_elements("css selector", "textarea") == []


def test_another_layer_has_other_colours_and_numbers_and_an_unread_character_none(page: Chrome) -> None:
    before = page.execute_script(GROUNDS, 10)
    choose(page, "layer 01")
    after = page.execute_script(GROUNDS, 10)
    assert after[0] == "rgba(0, 0, 0, 0)"
    assert before[1:] != after[1:]
    assert page.execute_script(MARKS, 4) == [None, "62", "61", "60"]
    assert len(page.find_elements("css selector", ".key button")) == 64
    choose(page, "layer 00")
    assert page.execute_script(GROUNDS, 10) == before


def test_of_more_experts_than_a_byte_holds_each_has_its_number_and_64_are_in_the_key(
    browser: Chrome,  # noqa: F811
    tmp_path: Path,
) -> None:
    layers = [LayerText("layer 00", 257, [256, 255, NOBODY], [0.5] * 3, [0, NOBODY, NOBODY], [0.1] * 3)]
    show(browser, page_of("abc", layers), tmp_path / "many.html")
    assert browser.execute_script(MARKS, 3) == ["256", "255", None]
    assert len(browser.find_elements("css selector", ".key button")) == 64
    hover(browser, 0)
    assert "expert 256, gate 0.50, second choice 0 (0.10)" in announced(browser) and complaints(browser) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_character_without_an_expert_has_its_own_colour_and_name(page: Chrome, tmp_path: Path, scheme: str) -> None:
    facts = [4, 1, 4, NOBODY], [0.0, 1.6, 0.0, 0.0], [2, 0, 2, NOBODY], [0.4, 0.3, 0.4, 0.0], [0, 3, 0, 1]
    prefer(page, scheme)
    show(page, page_of("abcd", [LayerText("layer 00", 4, *facts)]), tmp_path / "none.html")
    none, one, again, unread = page.execute_script(GROUNDS, 4)
    assert none == again and len({none, one, unread}) == 3 and unread == "rgba(0, 0, 0, 0)"
    assert [pair for pair in page.execute_script(CONTRAST) if pair[1] < 4.5] == []
    for i, words in enumerate(("none, most probable 2 (0.40)", "expert 1, gate 1.60 (the largest of 3), second")):
        hover(page, i)
        assert f"layer 00: {words}" in announced(page)
    button = page.find_element("css selector", ".key button")
    assert (button.text, button.get_dom_attribute("aria-label")) == ("– none 67%", "Show only none, 67%")


def test_pointing_at_a_character_tells_all_that_is_known_of_it(page: Chrome) -> None:
    hover(page, 7)
    assert announced(page) == (
        "“T” layer 00: expert 3, gate 0.60, second choice 4 (0.30) probability 0.78% "
        "instead: “e” 25%, line break below 0.1% character 8"
    )
    hover(page, 6)
    assert announced(page).startswith("line break layer 00: expert 3, gate 0.60")
    choose(page, "layer 01")
    hover(page, 0)
    assert announced(page) == "“R” not read by the model prompt character 1"
    hover(page, 9)
    assert announced(page).startswith("space layer 01: expert 54, gate 1.00 probability 100%")
    hover(page, 17)
    assert announced(page).startswith("“<”")


def test_arrows_move_a_caret_whose_character_is_told_to_a_screen_reader(page: Chrome) -> None:
    about = page.find_element("css selector", ".about")
    assert about.get_dom_attribute("aria-live") == "polite"
    press(page, RIGHT)
    assert announced(page).startswith("“O”") and announced(page).endswith("character 2")
    press(page, DOWN)  # ROMEO: / To be
    assert announced(page).startswith("“o”") and announced(page).endswith("character 9")
    press(page, UP, LEFT)
    assert announced(page).endswith("character 1")
    press(page, LEFT, UP)
    assert announced(page).endswith("character 1")
    press(page, END, RIGHT)
    assert announced(page).endswith(f"character {N}")
    press(page, HOME)
    assert announced(page).endswith("character 1")
    outlined = f"{CELLS}.map(cell => getComputedStyle(cell).outlineStyle)"
    assert page.execute_script(outlined, 3) == ["solid", "none", "none"]


def test_an_expert_of_the_key_can_be_shown_alone_by_click_and_by_keyboard(page: Chrome) -> None:
    coloured = f"{GROUNDS}.map(ground => ground !== 'rgba(0, 0, 0, 0)')"
    first, second = page.find_elements("css selector", ".key button")[:2]
    assert first.get_dom_attribute("aria-label") == f"Show only expert 0, {100 * FIRST.expert.count(0) / N:.0f}%"
    first.click()
    assert page.execute_script(coloured, 18) == [True] * 2 + [False] * 14 + [True] * 2
    assert page.execute_script(MARKS, 18) == ["0"] + [None] * 15 + ["0", None]
    page.execute_script("arguments[0].focus()", second)
    second.send_keys(ENTER)
    assert page.execute_script(coloured, 18) == [True] * 4 + [False] * 12 + [True] * 2
    assert [b.get_dom_attribute("aria-pressed") for b in (first, second)] == ["true", "true"]
    for button in (first, second):
        button.click()
    assert page.execute_script(coloured, 18) == [True] * 18


def test_marks_can_be_put_away_on_a_screen_and_are_there_on_paper(page: Chrome) -> None:
    box = page.find_element("css selector", ".numbers input")
    box.click()
    assert page.execute_script(MARKS, 6) == [None] * 6
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert page.execute_script(MARKS, 4) == ["0", None, "1", None]
    for name in (".views", ".numbers", ".about"):
        assert not page.find_element("css selector", name).is_displayed()
    assert page.find_element("css selector", ".key").is_displayed()  # which colour is whose
    adjusted = page.execute_script(f"{CELLS}.map(cell => getComputedStyle(cell).printColorAdjust)", 3)
    assert adjusted == ["exact"] * 3
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    box.click()
    assert page.execute_script(MARKS, 4) == ["0", None, "1", None]


def test_the_odds_are_a_colouring_of_their_own_and_the_prompt_has_none(page: Chrome) -> None:
    choose(page, "probability")
    assert page.execute_script(MARKS, 16) == [None] * 6 + ["D", "E", None, "A", None, "B", "C", None, "D", None]
    grounds = page.execute_script(GROUNDS, 18)
    assert set(grounds[:6]) == {"rgba(0, 0, 0, 0)"}
    assert len(set(grounds[6:18])) == 5
    styles = page.execute_script(f"{CELLS}.map(cell => getComputedStyle(cell).fontStyle)", 8)
    assert styles == ["italic"] * 6 + ["normal"] * 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_of_it_is_readable_in_both_themes(page: Chrome, scheme: str) -> None:
    prefer(page, scheme)
    seen = set()
    for label in ("all layers", "layer 00", "layer 01", "probability"):
        choose(page, label)
        ratios: list[tuple[str, float]] = page.execute_script(CONTRAST)
        assert [pair for pair in ratios if pair[1] < 4.5] == []
        seen |= {name for name, _ in ratios}
    page.find_element("css selector", ".key button").click()
    assert [pair for pair in page.execute_script(CONTRAST) if pair[1] < 4.5] == []
    assert {"mark", "share", *(f"expert-{i}" for i in range(8)), *(f"odds-{i}" for i in range(5))} <= seen


def test_it_does_not_scroll_sideways_on_a_phone(page: Chrome) -> None:
    resize(page, 360, 740)
    for label in ("all layers", "layer 00", "layer 01", "probability"):
        choose(page, label)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 360
        assert page.execute_script(
            "const b = document.querySelector('.letters'); return b.scrollWidth <= b.clientWidth"
        )
    assert complaints(page) == []


def test_a_hundred_thousand_characters_are_opened_turned_searched_and_recoloured_at_once(
    browser: Chrome,  # noqa: F811
    tmp_path: Path,
) -> None:
    n = 100_000
    text = ("abcdefghi\n" * (n // 10))[: n - 6] + "Needle"
    layers = [
        LayerText(
            f"layer {k:02d}",
            8,
            [(i * 7 + k) % 8 for i in range(n)],
            [0.5] * n,
            [(i + k) % 8 for i in range(n)],
            [0.1] * n,
        )
        for k in range(4)
    ]
    html = page_of(text, layers)
    started = time.monotonic()
    show(browser, html, tmp_path / "long.html")
    assert time.monotonic() - started < 5.0
    timed = "const at = performance.now(); arguments[0].click(); document.body.offsetTop; return performance.now() - at"
    radio = browser.find_element("xpath", "//fieldset//label[.='layer 03']/input")
    assert browser.execute_script(timed, radio) < 1000.0
    assert browser.execute_script("return document.querySelectorAll('.letters > span').length") == PAGE
    where = browser.find_element("css selector", ".where")
    assert where.text == "1 to 3,000 of 100,000"
    previous, following = browser.find_elements("css selector", ".pager button")
    assert not previous.is_enabled()
    assert browser.execute_script(timed, following) < 1000.0
    assert where.text == "3,001 to 6,000 of 100,000"
    find = browser.find_element("css selector", ".find")
    find.send_keys("needle", ENTER)
    assert where.text == "99,001 to 100,000 of 100,000"
    assert announced(browser).startswith("“needle”: 1 of 1. “N”") and announced(browser).endswith("character 99,995")
    found = f"{CELLS}.filter(cell => cell.classList.contains('found')).map(cell => cell.textContent).join('')"
    assert browser.execute_script(found, PAGE) == "Needle"
    box = browser.find_element("css selector", ".letters")
    assert box.size["height"] == 416 < browser.execute_script("return arguments[0].scrollHeight", box)
    assert not following.is_enabled()
    find.clear()
    find.send_keys("ghi", ENTER, ENTER)  # from the end of the text on from its beginning
    assert announced(browser).startswith("“ghi”: 2 of 9,999. “g”") and announced(browser).endswith("character 17")
    assert browser.execute_script(found, 30) == "ghi" * 3
    find.clear()
    find.send_keys("nowhere", ENTER)
    assert announced(browser) == "“nowhere” is not in the text." and browser.execute_script(found, PAGE) == ""
    go = browser.find_element("css selector", ".go")
    go.send_keys("3001", ENTER)
    assert announced(browser).endswith("character 3,001")
    press(browser, LEFT)
    assert where.text == "1 to 3,000 of 100,000"
    press(browser, PAGE_DOWN)
    assert announced(browser).endswith("character 3,001")
    press(browser, PAGE_UP)
    assert announced(browser).endswith("character 1")
    assert complaints(browser) == []


def test_without_javascript_the_text_is_there_plainly(page: Chrome) -> None:
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.refresh()
        box = page.find_element("css selector", ".letters")
        assert box.text.splitlines()[:2] == TEXT.splitlines()[:2]
        assert "need JavaScript" in page.find_element("css selector", "noscript").text
        assert not page.find_element("css selector", ".controls").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_nothing_is_asked_of_the_network(page: Chrome) -> None:
    page.refresh()
    assert page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []


def test_markup_in_the_text_is_text(browser: Chrome, tmp_path: Path) -> None:  # noqa: F811
    evil = "</script><img src=x onerror=\"document.title='evil'\">"
    n = len(evil)
    layers = [LayerText(evil, 2, [0] * n, [0.5] * n, [1] * n, [0.5] * n)]
    show(browser, page_of(evil, layers, odds=[Odds(0.5, ((evil, 0.2),))] * n), tmp_path / "evil.html")
    assert browser.execute_script(TOGETHER) == evil
    hover(browser, 0)
    assert evil in announced(browser)
    assert browser.title == "Coloured"
    assert browser.find_elements("css selector", "img") == []
    assert complaints(browser) == []
