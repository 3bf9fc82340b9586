"""`python -m switch_lm.inspect`: what it prints and writes, for one run and for two, and how it is refused."""

from __future__ import annotations

import csv
import errno
import importlib
import json
import os
import re
import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import browser, complaints, prefer, resize  # noqa: F401  browser is a fixture
from conftest import TEXT, MakeRun, checkpoint_of, tiny_model
from other_routers import ChosenOptions

from switch_lm.inspect import main
from switch_lm.inspection import study
from switch_lm.pages.characters import visible
from switch_lm.probe.pruning import RULES
from switch_lm.probe.reading import Probe, read
from switch_lm.storage import checkpoint
from switch_lm.text.vocabulary import Vocabulary

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

LONG = TEXT * 3
PRUNED = "Can experts be removed?"
SECTIONS = (
    "The experts",
    "The layers",
    "What explains the choice of expert?",
    "Who is dropped?",
    "Was the router right?",
    "Are the experts different?",
    PRUNED,
    "When did they specialise?",
    "What to do next",
    "How it was measured",
)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def run_with_history(make_run: MakeRun, name: str = "tiny", **changes: Any) -> Path:
    """A run of two checkpoints, at steps 5 and 9; the routers of the second are those of another seed."""
    model = tiny_model(len(Vocabulary.of(LONG)), **changes)
    folder = make_run(name, model=model, text=LONG)
    early = checkpoint_of(model, LONG, "fp32") | {"global_step": 5}
    for w_DE in model.router_parameters():
        w_DE.data = w_DE.data.flip(1)
    late = checkpoint_of(model, LONG, "fp32") | {"global_step": 9}
    checkpoint.write(early, folder / "checkpoints" / "step_000005.ckpt")
    checkpoint.write(late, folder / "checkpoints" / "best.ckpt")
    return folder


def test_a_run_gives_a_page_pictures_tables_and_findings_removes_old_pictures_and_names_what_it_cannot_read(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_with_history(make_run, capacity_factor=0.5)
    (folder / "result.json").write_text('{"dropped_whole_run": 0.123}')
    damaged = folder / "checkpoints" / "step_000007.ckpt"
    damaged.write_bytes(b"not a checkpoint")
    (folder / "inspect" / "pictures").mkdir(parents=True)
    (folder / "inspect" / "pictures" / "router_1.png").touch()  # of an inspection of two runs
    assert main(["--run", "tiny", "--prune"]) == 0
    result, page = capsys.readouterr(), (folder / "inspect" / "inspect.html").read_text()
    assert all(f">{section}</h2>" in page for section in SECTIONS)
    cards = re.findall(r"^layer 0(\d), expert (\d): .+, [\d.]+% of the text$", result.out, re.MULTILINE)
    assert cards == [(layer, expert) for layer in "01" for expert in "0123"]
    assert all(f"</span> layer 0{layer}, expert {expert}: " in page for layer, expert in cards)
    assert (
        len(
            re.findall(
                r"^layer 0\d: the character explains .*; dropped \d.*; gain over random", result.out, re.MULTILINE
            )
        )
        == 2
    )
    assert "dropped (training itself dropped 12.3% of all)." in page
    assert "outputs/runs/tiny/inspect/inspect.html" in result.err
    assert f"warning: tiny: left out of the history: {damaged} can" in result.err
    assert f"tiny: left out of the history: {damaged} can" in page
    counts = {"atlas": 2 * 6, "drops": 2 + 4, "router": 2 * 2, "experts": 2 * (4 + 6 + 4)}
    for table, number in counts.items():
        assert f"* differs from 0, corrected for all {number} comparisons here." in page, table
    assert not re.search(r"± 0\.0*( |%)", result.out + page)  # no interval of width zero
    pictures = {path.name for path in (folder / "inspect" / "pictures").iterdir()}
    assert {"atlas_0_00.png", "atlas_0_01.png", "router_0.png", "similarity_0.png", "changes_0.png"} <= pictures
    assert {"dropped_by_position_0.png", "dropped_by_character_0.png"} <= pictures and "router_1.png" not in pictures
    tables = {path.stem: rows(path) for path in (folder / "inspect" / "tables").iterdir()}
    assert set(tables) == {"atlas", "explained", "assignments", "drops", "router", "experts", "pruning", "history"}
    pruned = tables["pruning"]
    assert [(row["removed"], row["kept"]) for row in pruned] == [(rule, kept) for rule in RULES for kept in "321"]
    assert all(float(row["lowest_draw"]) < float(row["highest_draw"]) for row in pruned[6:])
    assert "as above, corrected for 9 comparisons." in page and "pruned_0.png" in pictures
    assert {row["run"] for row in tables["atlas"]} == {"tiny"}
    read = [int(row["count"]) for row in tables["atlas"] if row["layer"] == "0"]
    assert sum(read) == 16 * 16  # a tenth of 2,640 characters
    assert len(read) == 4 * len(set(LONG[int(0.9 * len(LONG)) :][:256]))  # no character that does not occur
    assert [row["step"] for row in tables["history"]] == ["5", "5", "9", "9"]
    assert all(float(row["differs_from_last"]) == 0 for row in tables["history"] if row["step"] == "9")
    assert all(float(row["changed_since_before"]) > 0.5 for row in tables["history"] if row["step"] == "9")


def test_two_runs_stand_side_by_side_on_the_same_windows_and_of_a_long_text_the_beginning_is_coloured(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("switch_lm.inspection.study.MOST_COLOURED", 100)
    run_with_history(make_run, "first")
    run_with_history(make_run, "second", capacity_factor=None, context_length=8, num_layers=3)
    assert main(["--run", "first", "--compare", "second", "--out", "both"]) == 0
    atlas = rows(Path("both/tables/atlas.csv"))
    read = {
        name: sum(int(r["count"]) for r in atlas if (r["run"], r["layer"]) == (name, "0"))
        for name in ("first", "second")
    }
    assert read["first"] == read["second"] > 0
    assert {row["run"] for row in rows(Path("both/tables/drops.csv"))} == {"first"}
    page = Path("both/inspect.html").read_text()
    assert "B: It was trained without a capacity: nothing is dropped." in page
    assert page.count('class="coloured"') == 2 and '<th scope="col">B: layer 02</th>' in page
    assert page.count("B less A: the difference</h4>") == 4 + 4 + 4  # of a layer that one has alone there are as many
    shown = set(re.findall(r"A: layer 0\d, expert (\d)|B: layer 0\d, expert (\d)", page))
    assert shown == {(e, "") for e in "0123"} | {("", e) for e in "0123"}
    assert {"atlas_difference_00.png", "atlas_difference_01.png", "similarity_1.png"} <= {
        path.name for path in Path("both/pictures").iterdir()
    }
    split = LONG[int(0.9 * len(LONG)) :]
    assert page.count(f"The validation text (its first 100 of {len(split) - 1} characters) as") == 2
    assert page.count(f'{{"text":{json.dumps(split[:100])},'.replace("'", "\\u0027")) == 2


@pytest.mark.parametrize(
    "changes",
    [{"top_k": 2}, {"num_experts": 1}, {"overflow": "reroute"}, {"context_length": 1}],
    ids=str,
)
def test_other_kinds_of_layers_can_be_inspected(
    changes: dict[str, Any], make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run_with_history(make_run, **changes)
    assert main(["--run", "tiny", "--out", "there"]) == 0
    experts = {row["expert"] for row in rows(Path("there/tables/atlas.csv"))}
    assert len(experts) == changes.get("num_experts", 4)
    read = sum(int(row["count"]) for row in rows(Path("there/tables/atlas.csv")))
    assert len(rows(Path("there/tables/assignments.csv"))) == read * changes.get("top_k", 1)
    assert (
        "second choice" in Path("there/inspect.html").read_text()
    ) and "written: there/inspect.html" in capsys.readouterr().err


def test_the_expert_with_the_largest_gate_stands_for_a_token_and_the_tables_have_all_its_experts_or_none(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, vocabulary = run_with_history(make_run, router=ChosenOptions()), Vocabulary.of(LONG)
    assert main(["--run", "tiny", "--out", "there"]) == 0
    by_name = {path.stem: rows(path) for path in Path("there/tables").iterdir()}
    model = checkpoint.read_model(folder / "checkpoints" / "best.ckpt")[0].eval()
    probe = Probe.of(vocabulary.encode(LONG)[int(0.9 * len(LONG)) :], context_length=16)
    ids_T, reading = probe.ids_BS.flatten().tolist(), read(model, probe)
    read_T = [visible(vocabulary.characters[i]) for i in ids_T]
    frequent = sorted(set(ids_T), key=lambda i: (-ids_T.count(i), i))
    for layer, (router, routing) in enumerate(zip(model.routers, model(probe.ids_BS).routings, strict=True)):
        cutoff_E = router.get_buffer("cutoff_E").tolist()
        gates_T = [{e: p for e, p in enumerate(p_E) if p > cutoff_E[e]} for p_E in routing.probs_TE.tolist()]
        ranked_T = [sorted(gates, key=lambda e: -gates[e]) for gates in gates_T]
        assert reading.expert_LBS[layer].flatten().tolist() == [ranked[0] if ranked else 4 for ranked in ranked_T]
        atlas, listed, means = (
            [row for row in by_name[name] if row["layer"] == str(layer)]
            for name in ("atlas", "assignments", "experts_per_token")
        )
        places = [(16 * int(row["window"]) + int(row["position"]), int(row["expert"])) for row in listed]
        assert places == [(t, e) for t, ranked in enumerate(ranked_T) for e in ranked]
        assert [row["character"] for row in listed] == [read_T[t] for t, _ in places]
        assert [float(row["gate"]) for row in listed] == pytest.approx([gates_T[t][e] for t, e in places], abs=1e-5)
        nobodys = Counter(c for c, gates in zip(read_T, gates_T, strict=True) if not gates)
        assert nobodys == Counter({row["character"]: int(row["count"]) for row in atlas if row["expert"] == "none"})
        by_character = [row for row in means if row["by"] == "character"]
        assert [row["value"] for row in by_character] == [visible(vocabulary.characters[i]) for i in frequent]
        for row, character in zip(by_character, frequent, strict=True):
            numbers = [len(gates) for i, gates in zip(ids_T, gates_T, strict=True) if i == character]
            expected = len(numbers), sum(numbers) / len(numbers), numbers.count(0) / len(numbers)
            assert [float(row[name]) for name in ("tokens", "experts", "without")] == pytest.approx(expected)
        assert [row["value"] for row in means if row["by"] == "difficulty"] == list("01234")
    page, printed = Path("there/inspect.html").read_text(), capsys.readouterr().out
    load = sum(row["layer"] == "0" and row["expert"] == "0" for row in by_name["assignments"]) / len(ids_T)
    assert re.search(rf"layer 00, expert 0: .*, {load:.0%} of the text", printed)
    assert "How many experts does a token get?" in page and "fifth by loss, 0 the easiest" in page
    assert ">none</text>" in page and "A token without an expert is not judged." in page


def test_a_layer_is_called_by_the_number_of_its_block(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run_with_history(make_run, capacity_factor=0.5, switch_every=2)
    assert main(["--run", "tiny", "--out", "there"]) == 0
    page = Path("there/inspect.html").read_text()
    assert {name.lower() for name in re.findall(r"[Ll]ayer \d+", capsys.readouterr().out)} == {"layer 01"}
    assert {name.lower() for name in re.findall(r"[Ll]ayer \d+", page)} == {"layer 01"}
    for table in Path("there/tables").iterdir():
        assert {row["layer"] for row in rows(table)} == {"1"}, table
    assert [path.name for path in Path("there/pictures").glob("atlas_*")] == ["atlas_0_01.png"]


@pytest.mark.slow
def test_of_two_runs_with_different_blocks_each_cell_stands_under_its_block(make_run: MakeRun) -> None:
    run_with_history(make_run, "first", switch_layers=[1])
    run_with_history(make_run, "second", switch_layers=[0, 2], num_layers=3)
    assert main(["--run", "first", "--compare", "second", "--out", "both"]) == 0
    table = Path("both/inspect.html").read_text().split("How much of the choice")[1].split("</table>")[0]
    lines = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line, re.DOTALL)
        for line in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    ]
    known = {line[0]: [cell != "-" for cell in line[1:]] for line in lines[1:] if line[0].startswith("character:")}
    second, first = [False, True, False], [True, False, False]
    assert known == {"character: layer 00": second, "character: layer 01": first, "character: layer 02": second}


def test_what_cannot_be_inspected_is_refused_in_one_line(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("dense", model=tiny_model(switch_every=0))
    make_run("tiny")
    for arguments, code, message in (
        (["--run", "dense"], 2, "is a dense model: there is no router or expert to inspect"),
        (["--run", "tiny", "--compare", "dense"], 2, "is a dense model"),
        (["--run", "nobody"], 1, "'nobody' is not a run"),
    ):
        assert main(arguments) == code
        err = capsys.readouterr().err.splitlines()
        assert message in err[-1] and len([line for line in err if not line.startswith("model: ")]) == 1
    assert not list(Path("outputs").glob("**/inspect.html"))


def test_a_full_disk_is_reported_with_the_size_and_leaves_the_page_of_before(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_with_history(make_run)
    Path("there").mkdir()
    Path("there/inspect.html").write_text("before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["--run", "tiny", "--out", "there"]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"there \(\d{2,3},\d{3} bytes\) could not be written: .*; make room, or give .* --out FOLDER", message
    )
    assert [path.name for path in Path("there").rglob("*") if path.is_file()] == ["inspect.html"]
    assert Path("there/inspect.html").read_text() == "before"


def test_two_checkpoints_of_one_run_have_different_names(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    inspect, done = study.inspect, list[study.Inspection]()

    def once(name: str, *given: Any, **sizes: Any) -> study.Inspection:
        done.append(replace(done[0], name=name) if done else inspect(name, *given, **sizes))
        return done[-1]

    monkeypatch.setattr(study, "inspect", once)
    folder = run_with_history(make_run, capacity_factor=0.5)
    early = str(folder / "checkpoints" / "step_000005.ckpt")
    assert main(["--run", "tiny", "--compare", early, "--out", "both"]) == 0
    assert {row["run"] for row in rows(Path("both/tables/atlas.csv"))} == {"tiny/best", "tiny/step_000005"}
    assert Path("both/pictures/similarity_1.png").exists()


@pytest.mark.browser
def test_the_page_answers_its_questions_in_a_browser_wide_and_narrow_light_and_dark(
    make_run: MakeRun,
    browser: Chrome,  # noqa: F811
) -> None:
    folder = run_with_history(make_run, capacity_factor=0.5)
    assert main(["--run", "tiny"]) == 0
    complaints(browser)
    browser.get((folder / "inspect" / "inspect.html").resolve().as_uri())
    for scheme, width in (("light", 1280), ("dark", 390), ("dark", 1280), ("light", 390)):
        prefer(browser, scheme)
        resize(browser, width, 900)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        drawings = browser.find_elements("css selector", "figure svg")
        assert len(drawings) == 2 + 3 + 1 + 2 + 2
        assert all(drawing.is_displayed() and drawing.size["height"] > 60 for drawing in drawings)
        letters = [text for text in drawings[0].find_elements("css selector", "text") if len(text.text) == 1]
        assert len(letters) > 10 and min(text.size["height"] for text in letters) >= 11  # characters one can read
        box = browser.find_element("css selector", ".coloured .letters")
        cards = browser.find_elements("css selector", ".card")
        assert len(cards) == 8 and min(card.size["width"] for card in cards) > 240
        rows = len({card.location["y"] for card in cards})
        assert rows == (8 if width == 390 else 4)
    headings = [heading.text for heading in browser.find_elements("css selector", "section h2")]
    assert headings == [section for section in SECTIONS if section != PRUNED]
    first = browser.find_element("css selector", ".card")
    assert re.match(r"0 layer 00, expert 0: .+% of the text\nload\n", first.text)
    (context,) = first.find_elements("css selector", "details > summary")
    assert "highest gate" not in first.text
    context.send_keys("\ue007")  # Enter
    assert "highest gate" in first.text and "lowest gate" in first.text
    beginning = LONG[int(0.9 * len(LONG)) :][:100].replace("\n", "")
    shown = browser.execute_script("return arguments[0].textContent", box)
    assert [c for c in shown if c.isalpha()][:60] == [c for c in beginning if c.isalpha()][:60]
    commands = [pre.text for pre in browser.find_elements("css selector", "section pre")]
    assert 2 <= len(commands[:-1]) <= 3 and commands[-1] == "python -m switch_lm.inspect --run tiny"
    for command in commands[:-1]:
        program, *arguments = shlex.split(command)[2:]
        importlib.import_module(program).parser().parse_args(arguments)
    assert complaints(browser) == []
