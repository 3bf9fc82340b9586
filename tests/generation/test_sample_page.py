"""The page of a sample shows the text, its experts and how it was made."""

from __future__ import annotations

import base64
import json
import re
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, MakeRun, tiny_model
from other_routers import ChosenOptions

from switch_lm.generate import main, parser
from switch_lm.generation.page import Sampling, layer_texts, sample_page
from switch_lm.generation.trace import Choice, Traced, trace
from switch_lm.pages.coloured_text import NOBODY
from switch_lm.text.vocabulary import Vocabulary


def sampling(**changes: Any) -> Sampling:
    given: dict[str, Any] = {
        "checkpoint": Path("outputs/runs/mine/checkpoints/best.ckpt"),
        "prompt": "To be",
        "length": 20,
        "temperature": 0.8,
        "top_k": 5,
        "top_p": 0.95,
        "seed": 3,
        "num_experts": 4,
        "blocks": [0, 1],
    }
    return Sampling(**given | changes)


def test_a_command_or_another_script_in_the_prompt_is_visible_and_reorders_nothing() -> None:
    html = sample_page([Traced("\x1b", None, None)], sampling(prompt="\x1bשלום", blocks=[]))
    assert "<dd>&#x27;\\x1b<bdi>שלום</bdi>&#x27;</dd>" in html and "&#x27;--prompt=\\x1bשלום&#x27;" in html
    assert ">\\x1b</div>" in html and "\x1b" not in html


def page(**changes: Any) -> str:
    asked = sampling(**{key: value for key, value in changes.items() if key != "switch_every"})
    model = tiny_model(**{key: value for key, value in changes.items() if key == "switch_every"})
    how: dict[str, Any] = {
        "temperature": asked.temperature,
        "top_k": asked.top_k,
        "top_p": asked.top_p,
        "seed": asked.seed,
    }
    return sample_page(list(trace(model, Vocabulary.of(TEXT), asked.prompt, length=asked.length, **how)), asked)


def words_after(html: str) -> str:
    """The words after the text."""
    return unescape(re.sub(r"<[^>]+>", " ", html[html.index('<h2 id="how">') :]))


def data_of(html: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(html.split('<script type="application/json">')[1].split("</script>")[0])
    return data


def test_by_layer_each_character_has_its_choices_and_an_unread_one_has_none() -> None:
    choices = (Choice(3, 0.5, 1, 0.25), Choice(2, 0.75, 0, 0.125))
    first, second = layer_texts([Traced("a", None, None), Traced("b", choices, None)], [1, 3], num_experts=4)
    assert (first.label, second.label) == ("layer 01", "layer 03")
    assert (first.expert, first.gate, first.second, first.second_probability) == (
        [NOBODY, 3], [0.0, 0.5], [NOBODY, 1], [0.0, 0.25],
    )  # fmt: skip
    assert (second.expert, second.gate) == ([NOBODY, 2], [0.0, 0.75])


def test_the_page_has_the_text_every_layer_and_the_odds() -> None:
    html = page()
    data = data_of(html)
    assert [view["label"] for view in data["views"]] == ["layer 00", "layer 01", "probability"]
    assert " checked" not in html.split("</fieldset>")[0]  # so that all layers at once are shown
    assert data["text"].startswith("To be") and len(data["text"]) == 25
    assert [one is None for one in data["odds"]] == [True] * 5 + [False] * 20
    for view in data["views"][:2]:
        assert set(base64.b64decode(view["codes"])) <= set(range(4))


def test_a_character_that_no_expert_took_is_named_none_with_and_without_a_script() -> None:
    known = list(trace(tiny_model(router=ChosenOptions()), Vocabulary.of(TEXT), "To be", length=80))
    html = sample_page(known, sampling())
    view, numbers = data_of(html)["views"][1], [one.choices[1].number for one in known if one.choices]
    assert list(base64.b64decode(view["number"])) == numbers and {0, 1, 2} <= set(numbers)
    assert [code == 4 for code in base64.b64decode(view["codes"])] == [number == 0 for number in numbers]
    assert (view["names"][4], view["marks"][4], view["none"], view["shown"][0]) == ("none", "–", 4, 4)
    assert "has the largest gate" in view["key"] and "a character that no expert took has none" in words_after(html)
    assert f" {numbers.count(0) / len(numbers):.1%} of the characters in layer 01." in html


def test_the_page_states_the_settings_and_the_pass_of_each_fact() -> None:
    words = words_after(page())
    for setting in ("best.ckpt", "'To be'", "20 characters", "0.8", "5 likeliest"):
        assert setting in words
    assert "the one that processed it when the model first read it" in words
    assert "the one with which it was drawn" in words


def test_the_command_that_is_shown_asks_for_the_same_sample() -> None:
    asked = sampling(prompt='-it\'s\n"<To>"', temperature=0.0)
    html = page(prompt="To be")
    split = f"printf '%s\\0' {asked.command}"
    words = subprocess.run(["bash", "-c", split], capture_output=True, text=True, check=True).stdout.split("\0")
    assert asked.command.isprintable()
    python, m, module, *options = words[:-1]
    assert (python, m, module) == ("python", "-m", "switch_lm.generate")
    parsed = parser().parse_args(options)
    assert Path(parsed.run) == asked.checkpoint
    for name in ("prompt", "length", "temperature", "top_k", "top_p", "seed"):
        assert getattr(parsed, name) == getattr(asked, name)
    assert sampling().command in words_after(html)


def test_no_limit_and_no_prompt_are_stated() -> None:
    words = words_after(page(prompt="", top_k=None, top_p=None))
    assert "none: the text begins as after a line break" in words
    assert re.search(r"drawn from\s+all", words)


def test_greedy_text_is_explained_to_show_the_models_own_probability() -> None:
    assert "the model’s own, as at temperature 1" in words_after(page(temperature=0.0))


def test_a_page_without_a_character_still_says_that_the_model_has_experts() -> None:
    html = page(prompt="", length=0)
    assert data_of(html)["text"] == "" and "it has no experts" not in words_after(html)


def test_a_dense_model_is_coloured_by_probability_alone_and_the_page_says_that_it_has_no_experts() -> None:
    html = page(switch_every=0, blocks=[])
    assert [view["label"] for view in data_of(html)["views"]] == ["probability"]
    assert "it has no experts" in words_after(html)
    assert "processed" not in words_after(html)


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [("outputs/runs/mine/checkpoints/best.ckpt", "mine"), ("elsewhere/some.ckpt", "some.ckpt")],
)
def test_the_title_names_the_run_or_else_the_file(checkpoint: str, name: str) -> None:
    assert f"<title>A sample from {name}</title>" in page(checkpoint=Path(checkpoint))


@pytest.mark.parametrize("prompt", ["be: ", "", TEXT[:50]], ids=["short", "none", "longer than the context"])
def test_with_a_page_the_command_writes_the_same_text_and_says_where_the_page_is(
    prompt: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run()
    options = ["--prompt", prompt, "--length", "40", "--seed", "7"]
    assert main(options) == 0
    plain = capsys.readouterr()
    assert main([*options, "--html", "sample.html"]) == 0
    captured = capsys.readouterr()
    assert captured.out == plain.out
    assert captured.err == plain.err + "written: sample.html\n"
    page = Path("sample.html").read_text(encoding="utf-8")
    assert json.dumps(captured.out.removesuffix("\n")) in page


def test_a_page_that_cannot_be_written_is_refused_in_one_line_before_anything_is_drawn(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run()
    assert main(["--length", "3", "--html", "text.txt/sample.html"]) == 1
    assert main(["--length", "3", "--html", "outputs"]) == 1
    captured = capsys.readouterr()
    no_folder, folder = captured.err.replace("model: outputs/runs/tiny/checkpoints/best.ckpt\n", "").splitlines()
    rule = "the results must go to a file in a folder that can be written; give another with --html FILE"
    assert no_folder.startswith("text.txt/sample.html: ") and no_folder.endswith(rule)
    assert folder.startswith("outputs: ") and folder.endswith(rule)
    assert captured.out == ""


def test_a_page_in_a_new_folder_is_written_and_calls_layers_by_their_blocks(make_run: MakeRun) -> None:
    make_run(model=tiny_model(switch_layers=[1]))
    assert main(["--length", "3", "--html", "new/sample.html"]) == 0
    page = Path("new/sample.html").read_text(encoding="utf-8")
    assert "A sample from tiny" in page
    assert [view["label"] for view in data_of(page)["views"]] == ["layer 01", "probability"]
