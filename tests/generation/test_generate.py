"""Generated text depends on model, prompt, settings and seed alone: not on the cache, the mode or the global seed."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import TEXT, MakeRun, tiny_model
from torch import Tensor

from switch_lm.commandline.signals import ended_by_signals
from switch_lm.generate import main
from switch_lm.generation import sampling as writing
from switch_lm.generation.sampling import Reading, Rule, generate, read, sample
from switch_lm.generation.trace import trace
from switch_lm.model.attention import LayerCache
from switch_lm.model.transformer import SwitchLM
from switch_lm.pages.characters import harmless
from switch_lm.storage import checkpoint
from switch_lm.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(TEXT)
CONTEXT = 16


def written(model: SwitchLM, prompt: str = "To be", *, length: int = 40, seed: int = 0, **how: float | None) -> str:
    return "".join(generate(model, VOCABULARY, prompt, length=length, seed=seed, **how))  # type: ignore[arg-type]


@torch.inference_mode()
def reread(model: SwitchLM, ids: list[int]) -> Tensor:
    """The logits after `ids` without a cache."""
    logits: Tensor = model(torch.tensor([ids])).logits
    return logits[0, -1].double()


@pytest.mark.parametrize("position", ["rotary", "learned", "none"])
def test_logits_from_the_cache_are_those_of_one_forward_over_the_window(position: str) -> None:
    model = tiny_model(position=position)
    ids = VOCABULARY.encode(TEXT[:CONTEXT]).tolist()
    cache = model.new_cache()
    read(model, ids[:3], cache)
    for end in range(4, CONTEXT + 1):
        cached_V = read(model, ids[end - 1 : end], cache).logits_V
        torch.testing.assert_close(cached_V, reread(model, ids[:end]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("position", ["rotary", "learned", "none"])
def test_cached_text_equals_that_of_rereading_a_window_that_is_halved_when_full(position: str) -> None:
    model = tiny_model(position=position)
    window, expected = VOCABULARY.encode("To be").tolist(), ""
    for _ in range(3 * CONTEXT):
        window = window[-CONTEXT // 2 :] if len(window) > CONTEXT else window
        window = [*window, int(reread(model, window).argmax())]
        expected += VOCABULARY.characters[window[-1]]
    assert written(model, length=3 * CONTEXT, temperature=0.0) == expected


def test_a_full_context_is_reread_from_its_last_half_in_one_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[tuple[list[int], Reading]] = []

    def spy(model: SwitchLM, ids: list[int], cache: list[LayerCache]) -> Reading:
        passes.append((ids, read(model, ids, cache)))
        return passes[-1][1]

    monkeypatch.setattr(writing, "read", spy)
    model = tiny_model()
    text = "To be" + written(model, length=2 * CONTEXT)
    lengths = [len(ids) for ids, _ in passes]
    assert lengths == [5] + [1] * 11 + [8] + [1] * 8 + [8] + [1] * 8 + [8] + [1]
    ids, logits_V = passes[12][0], passes[12][1].logits_V
    assert VOCABULARY.decode(torch.tensor(ids)) == text[CONTEXT + 1 - 8 : CONTEXT + 1]
    torch.testing.assert_close(logits_V, reread(model, ids), atol=1e-4, rtol=0)


def test_a_context_of_one_character_still_writes() -> None:
    assert len(written(tiny_model(context_length=1), length=5)) == 5


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    model = tiny_model()
    assert written(model, seed=1) == written(model, seed=1) != written(model, seed=2)


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    model = tiny_model()
    expected = written(model)
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert written(model) == expected
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_in_training_writes_as_in_eval_and_is_in_training_at_each_character() -> None:
    model = tiny_model(dropout=0.5, jitter=0.5)
    expected = written(model)
    text = ""
    for character in generate(model.train(), VOCABULARY, "To be", length=40):
        assert all(module.training for module in model.modules())
        assert not torch.is_inference_mode_enabled()
        text += character
    assert text == expected


def test_a_model_in_eval_stays_there() -> None:
    model = tiny_model()
    written(model)
    assert not any(module.training for module in model.modules())


def test_generation_is_dropless_whatever_the_capacity_factors() -> None:
    tight = tiny_model(capacity_factor=0.1, eval_capacity_factor=0.1)
    assert written(tight) == written(tiny_model(capacity_factor=None))


def test_top_1_is_greedy() -> None:
    model = tiny_model()
    assert written(model, top_k=1) == written(model, temperature=0.0)


@pytest.mark.parametrize("cold", [5e-324, 1e-9])
def test_a_temperature_near_zero_is_greedy(cold: float) -> None:
    model = tiny_model()
    assert written(model, temperature=cold) == written(model, temperature=0.0)


def test_a_top_k_above_the_vocabulary_is_the_whole_of_it() -> None:
    model = tiny_model()
    assert written(model, top_k=10_000) == written(model)


@pytest.mark.parametrize(
    ("rule", "shares"),
    [
        (Rule(1.0), (2 / 6, 3 / 6, 1 / 6)), (Rule(0.5), (4 / 14, 9 / 14, 1 / 14)), (Rule(1.0, 2), (2 / 5, 3 / 5, 0.0)),
        (Rule(1.0, top_p=0.8), (2 / 5, 3 / 5, 0.0)), (Rule(1.0, top_p=0.45), (0.0, 1.0, 0.0)),
        (Rule(1.0, top_p=0.85), (2 / 6, 3 / 6, 1 / 6)), (Rule(1.0, 2, 0.7), (2 / 5, 3 / 5, 0.0)),
        (Rule(0.5, top_p=0.6), (0.0, 1.0, 0.0)), (Rule(1.0, 2, 0.55), (0.0, 1.0, 0.0)),
    ],
)  # fmt: skip
def test_draws_follow_the_softmax_of_logits_over_temperature(rule: Rule, shares: tuple[float, ...]) -> None:
    """Of the most probable ones: top-p keeps the fewest whose probability, of the top k, is that large together."""
    logits_V = torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64).log()  # a temperature of 1/2 squares the odds
    generator = torch.Generator().manual_seed(0)
    draws = [sample(logits_V, rule, generator) for _ in range(2000)]
    for i, share in enumerate(shares):
        assert draws.count(i) / 2000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 2000))


def test_only_the_end_of_a_prompt_longer_than_the_context_is_read() -> None:
    model = tiny_model()
    assert written(model, TEXT[:50]) == written(model, TEXT[50 - CONTEXT : 50])


def test_an_empty_prompt_stands_for_a_newline() -> None:
    model = tiny_model()
    assert written(model, "") == written(model, "\n")


@pytest.mark.parametrize(("stored", "page"), [("o", []), ("o", ["--html", "sample.html"]), ("", [])], ids=str)
def test_a_model_of_a_text_without_a_newline_writes_from_its_start(
    stored: str, page: list[str], make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    file, start = make_run(text="to be or not " * 40) / "checkpoints" / "best.ckpt", stored or "b"  # the first letter
    content = checkpoint.read(file)
    checkpoint.write(content | {"switch_lm": content["switch_lm"] | {"start": stored}}, file)
    assert main(["--length", "9", *page]) == main(["--length", "9", "--prompt", start]) == 0
    printed, reported = capsys.readouterr()
    assert printed[:11] == printed[11:] and printed.startswith(start)
    assert reported.count(f"it begins with {start!r} (U+") == 1


def test_texts_that_are_written_at_once_are_those_of_their_seeds() -> None:
    """Longer than the context, so that windows are halved; in training as in `eval()`, and the model stays there."""
    model, vocabulary = tiny_model(), Vocabulary.of(TEXT)
    each = ["".join(generate(model, vocabulary, "", length=60, temperature=1.0, seed=seed)) for seed in (0, 5)]
    ids_BS = writing.texts(model.train(), vocabulary, length=60, seeds=[0, 5])
    assert [vocabulary.decode(ids_S) for ids_S in ids_BS] == each and model.training
    assert writing.texts(model, vocabulary, length=0, seeds=[0, 5]).shape == (2, 0)


def test_no_length_is_no_text() -> None:
    assert written(tiny_model(), length=0) == ""


@pytest.mark.parametrize("writes", [generate, trace])
def test_an_unknown_character_is_named_before_anything_is_written(writes: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"'€' \(U\+20AC EURO SIGN\) at position 3 is not among the"):
        writes(tiny_model(), VOCABULARY, "To €", length=10)


def test_the_command_writes_prompt_and_text_to_stdout_and_the_checkpoint_to_stderr(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("older", saved_at=1), make_run("mine", saved_at=2)
    assert (
        main(
            [
                "--prompt",
                "be: ",
                "--length",
                "30",
                "--temperature",
                "0.5",
                "--top-k",
                "3",
                "--top-p",
                "0.9",
                "--seed",
                "7",
            ]
        )
        == 0
    )
    expected = written(tiny_model(), "be: ", length=30, temperature=0.5, top_k=3, top_p=0.9, seed=7)
    captured = capsys.readouterr()
    assert captured.out == f"be: {expected}\n"
    assert captured.err == "model: outputs/runs/mine/checkpoints/best.ckpt\n"


def test_the_command_says_how_much_of_a_long_prompt_is_read(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run()
    assert main(["--prompt", TEXT, "--length", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{TEXT}\n"
    assert f"the prompt has {len(TEXT)} characters; the model reads the last 16" in captured.err


def test_on_a_terminal_commands_in_the_text_are_shown_and_elsewhere_they_stay(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a\x1b[31m\x07\b\r\x9b\u202e\ttea\u0301\n" * 30
    make_run(model=tiny_model(len(Vocabulary.of(text))), text=text)
    for shown in (text[:12], harmless(text[:12])):
        assert main(["--prompt", text[:12], "--length", "60"]) == 0
        written = capsys.readouterr().out
        assert written.startswith(shown)
        assert ("\x1b" in written) == (shown == text[:12])
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)


@pytest.mark.parametrize(
    "option",
    [
        "--length -1", "--length 1.5", "--temperature -0.1", "--temperature nan", "--temperature inf",
        "--temperature warm", "--top-k 0", "--top-k -3", "--top-p 0", "--top-p 1.1", "--seed -1",
        f"--seed {2**64}", "--html .",
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_before_any_model_is_searched(
    option: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    name, value = option.split()
    with pytest.raises(SystemExit, match="2"):
        main([name, value])
    message = capsys.readouterr().err.splitlines()[-1]
    assert name in message
    assert f"'{value}' must be a" in message
    assert "give for example" in message


def test_an_unknown_character_of_the_prompt_ends_the_command_with_2(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run()
    assert main(["--prompt", "Tö be"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "--prompt: 'ö' (U+00F6 LATIN SMALL LETTER O WITH DIAERESIS) at position 1" in captured.err


def test_no_run_a_wrong_name_and_a_run_without_checkpoint_end_with_1_and_one_line(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 1
    make_run("started", saved_at=None)
    assert main(["--run", "start"]) == 1
    assert main(["--run", "started"]) == 1
    captured = capsys.readouterr()
    nothing, wrong, unsaved = captured.err.splitlines()
    assert nothing.startswith("no run under outputs has a checkpoint yet")
    assert wrong.endswith("did you mean: started")
    assert unsaved.startswith("no checkpoint at outputs/runs/started")
    assert captured.out == ""


def test_outputs_says_where_runs_are_searched(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("mine")
    Path("outputs").rename("elsewhere")
    assert main(["--length", "0"]) == 1
    assert main(["--length", "0", "--outputs", "empty"]) == 1
    assert main(["--length", "0", "--outputs", "elsewhere"]) == 0
    assert main(["--length", "0", "--outputs", "elsewhere", "--run", "mine"]) == 0
    default, empty, newest, named = capsys.readouterr().err.splitlines()
    assert default.startswith("no run under outputs has a checkpoint yet")
    assert empty.startswith("no run under empty has a checkpoint yet")
    assert newest == named == "model: elsewhere/runs/mine/checkpoints/best.ckpt"


def test_a_checkpoint_of_another_version_ends_with_2_a_damaged_one_with_1_and_no_traceback(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    file = make_run() / "checkpoints" / "best.ckpt"
    content = checkpoint.read(file)
    checkpoint.write({**content, "state_dict": {}}, file)
    assert main([]) == 2
    assert "best.ckpt does not fit this version of switch_lm" in capsys.readouterr().err
    checkpoint.write({**content, "switch_lm": {"model": {}}}, file)
    assert main([]) == 2
    assert "best.ckpt is of an older version of switch_lm, which stored no router; train" in capsys.readouterr().err
    file.write_bytes(file.read_bytes()[:100])
    assert main([]) == 1
    assert "best.ckpt cannot be read as a checkpoint" in capsys.readouterr().err


def test_ctrl_c_ends_quietly_with_130(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> Iterator[str]:
        yield "a"
        raise KeyboardInterrupt

    make_run()
    monkeypatch.setattr(writing, "generate", interrupted)
    assert main([]) == 130
    assert capsys.readouterr().err.splitlines() == ["model: outputs/runs/tiny/checkpoints/best.ckpt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGXCPU])
def test_a_signal_ends_with_its_code_and_a_word(
    number: signal.Signals, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def signalled(*_: object, **__: object) -> Iterator[str]:
        yield "a"
        signal.raise_signal(number)

    make_run()
    monkeypatch.setattr(writing, "generate", signalled)
    before = signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup
    try:
        assert main([]) == 128 + number
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err.splitlines()[1:] == [f"Stopped by {number.name}."]


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("arguments", "unwanted"),
    [(["--help"], {"torch", "jinja2"}), (["--length", "1"], {"matplotlib", "jinja2", "lightning", "hydra"})],
    ids=["help", "a sample without a page"],
)
def test_a_command_loads_only_what_it_needs(arguments: list[str], unwanted: set[str], make_run: MakeRun) -> None:
    make_run()
    code = (
        "import atexit, os, sys\nfrom switch_lm.generate import main\n"
        f"atexit.register(lambda: os._exit(bool({unwanted} & set(sys.modules))))\nmain({arguments})"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
