"""An evaluation covers the whole split, at the given capacity, batch size and precision."""

from __future__ import annotations

import json
import math
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BATCH_SIZE, TEXT, MakeRun, tiny_model
from scipy.stats import t
from small_models import family

from switch_lm.commandline import measuring
from switch_lm.evaluate import main
from switch_lm.generation.sampling import generate
from switch_lm.measure.evaluation import AccuracyTally, Evaluation, KeptLosses, evaluate, nanogpt_estimates
from switch_lm.measure.ngrams import baselines
from switch_lm.model.transformer import SwitchLM
from switch_lm.routers.options import SwitchOptions
from switch_lm.stats.intervals import Estimate
from switch_lm.text.vocabulary import Vocabulary

CONTEXT = 16
VALIDATION = Vocabulary.of(TEXT).encode(TEXT)[int(0.9 * len(TEXT)) :]
V = len(Vocabulary.of(TEXT))


def measured(
    model: SwitchLM,
    ids: torch.Tensor = VALIDATION,
    *,
    factor: float | None = None,
    batch_size: int = BATCH_SIZE,
    precision: str = "fp32",
) -> Evaluation:
    how: dict[str, Any] = {"context_length": CONTEXT, "batch_size": batch_size}
    return evaluate(model, ids, capacity_factor=factor, precision=precision, **how)


def uniform_model() -> SwitchLM:
    model = tiny_model()
    torch.nn.init.zeros_(model.head.weight)
    return model


def crowded_model() -> SwitchLM:
    """Of four characters, each its own direction: the first layer sends all to expert 0, the second one to each."""
    model = tiny_model(4)
    weights = model.state_dict()
    for name, weight in weights.items():
        if name.endswith(("attention.out.weight", "w_out_EFD", "router.w_DE")):
            weight.zero_()
    weights["embedding.weight"].copy_(torch.eye(4, 16))
    weights["blocks.0.ffn.router.w_DE"][:, 0] = 1.0
    weights["blocks.1.ffn.router.w_DE"].copy_(torch.eye(16, 4))
    return model


def test_a_uniform_model_has_a_loss_of_log_v_over_every_prediction() -> None:
    result = measured(uniform_model())
    assert result.predictions == len(VALIDATION) - 1
    assert result.loss == pytest.approx(math.log(V), abs=1e-6)
    assert result.perplexity == pytest.approx(V, rel=1e-6)
    assert result.bits_per_character == pytest.approx(math.log2(V), abs=1e-6)


def test_the_loss_is_the_mean_over_characters_and_not_over_batches() -> None:
    model, total = tiny_model(), 0.0
    with torch.inference_mode():
        for start in range(0, len(VALIDATION) - 1, CONTEXT):
            window = VALIDATION[start : start + CONTEXT + 1]
            log_probs_SV = model(window[None, :-1]).logits[0].log_softmax(dim=-1)
            total -= float(log_probs_SV[range(len(window) - 1), window[1:]].sum())
    assert (len(VALIDATION) - 1) % CONTEXT != 0
    assert measured(model).loss == pytest.approx(total / (len(VALIDATION) - 1), abs=1e-5)


def test_the_dropless_loss_does_not_depend_on_the_batch_size() -> None:
    losses = [measured(tiny_model(), batch_size=size).loss for size in (1, 2, 5)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-4)


@pytest.mark.parametrize(("factor", "first_layer"), [(0.5, 0.875), (1.0, 0.75), (2.0, 0.5), (4.0, 0.0), (None, 0.0)])
def test_the_dropped_share_is_what_lies_beyond_the_capacity(factor: float | None, first_layer: float) -> None:
    ids = torch.arange(4 * CONTEXT + 8 + 1) % 4  # a batch of four windows, and a short window of 8: both split by 4
    result = measured(crowded_model(), ids, factor=factor)
    second_layer = 0.5 if factor == 0.5 else 0.0
    assert result.dropped_per_layer == (first_layer, second_layer)
    assert result.dropped == (first_layer + second_layer) / 2


def test_a_dense_model_drops_nothing() -> None:
    result = measured(tiny_model(switch_every=0), factor=1.0)
    assert (result.dropped, result.dropped_per_layer) == (0.0, ())


def test_dropping_changes_the_loss_and_a_capacity_for_all_does_not() -> None:
    model = tiny_model()
    dropless = measured(model).loss
    assert measured(model, factor=4.0).loss == pytest.approx(dropless, abs=1e-4)
    assert abs(measured(model, factor=0.25).loss - dropless) > 1e-3


def test_bf16_is_near_fp32_and_not_the_same() -> None:
    model = tiny_model(init_scale=0.1)
    difference = abs(measured(model, precision="bf16").loss - measured(model).loss)
    assert 0.0 < difference < 0.02


def test_a_model_in_training_is_evaluated_in_eval_and_put_back() -> None:
    model = tiny_model(dropout=0.5, router=SwitchOptions(jitter=0.5))
    expected = measured(model)
    assert measured(model.train()) == expected
    assert model.training


def test_nanogpts_estimate_of_a_split_of_one_window_is_the_loss_of_that_window() -> None:
    model, ids = tiny_model(), VALIDATION[: CONTEXT + 1]
    draws = nanogpt_estimates(model, ids, batch_size=3, capacity_factor=None, precision="fp32", num_draws=2, seed=0)
    assert draws == pytest.approx([measured(model, ids).loss] * 2, abs=1e-5)


def test_nanogpts_estimate_depends_on_its_seed_alone_and_is_near_the_whole_split() -> None:
    model = tiny_model()

    def draws(seed: int) -> list[float]:
        return nanogpt_estimates(
            model, VALIDATION, batch_size=8, capacity_factor=None, precision="fp32", num_draws=2, seed=seed
        )

    state = torch.get_rng_state()
    first = draws(0)
    assert draws(0) == first != draws(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == pytest.approx([measured(model).loss] * 2, rel=0.1)


def test_the_command_prints_a_row_and_writes_an_entry_for_each_capacity_factor(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    assert main(["--run", "tiny", "--capacity-factor", "0.5", "2", "none"]) == 0
    content = json.loads((run / "evaluate.json").read_text())
    facts = {key: content[key] for key in ("batch_size", "context_length", "precision", "checkpoint")}
    checkpoint = "outputs/runs/tiny/checkpoints/best.ckpt"
    assert facts == {"batch_size": 4, "context_length": 16, "precision": "fp32", "checkpoint": checkpoint}
    assert content["training_capacity_factor"] == 1.25
    for entry, factor in zip(content["results"], (0.5, 2.0, None), strict=True):
        expected = measured(tiny_model(), factor=factor)
        assert (entry["capacity_factor"], entry["predictions"]) == (factor, 85)
        assert entry["loss"] == pytest.approx(expected.loss, abs=1e-5)
        assert entry["dropped"] == expected.dropped
        assert tuple(entry["dropped_per_layer"]) == expected.dropped_per_layer
    out = capsys.readouterr().out.splitlines()
    assert "85 predictions in windows of 16; capacity for batches of 4 windows; fp32" in out[0]
    assert [line.split()[0] for line in out[3:6]] == ["0.5", "2", "none"] and not out[6]
    assert [path.name for path in run.iterdir() if path.is_file() and path.name.startswith(".")] == []


def test_the_loss_beside_dropless_is_paired_by_character_over_batches_and_the_training_factor_is_marked(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the interval by a plain delete-one jackknife over batches of one window."""
    monkeypatch.setattr(measuring, "PER_LINE", 1)
    run, ids = make_run(text=2 * TEXT), Vocabulary.of(TEXT).encode(2 * TEXT)[int(1.8 * len(TEXT)) :]
    assert main(["--capacity-factor", "0.5", "1.25", "--batch-size", "1", "--no-baselines"]) == 0
    out, content = capsys.readouterr().out, json.loads((run / "evaluate.json").read_text())
    results = content["results"]
    assert [entry["capacity_factor"] for entry in results] == [0.5, 1.25, None]
    kept: list[torch.Tensor] = []
    for factor in (0.5, None):
        tally = KeptLosses()
        how: Any = {"context_length": CONTEXT, "batch_size": 1, "capacity_factor": factor, "precision": "fp32"}
        evaluate(tiny_model(), ids, **how, tally=tally)
        kept.append(tally.loss_N.double())
    difference_N = kept[0] - kept[1]
    parts, total = difference_N.split(CONTEXT), len(difference_N)
    without = [(difference_N.sum() - part.sum()) / (total - len(part)) for part in parts]
    error = math.sqrt((len(parts) - 1) / len(parts) * sum((one - difference_N.mean()) ** 2 for one in without))
    half = t.ppf(0.975, total**2 / sum(len(part) ** 2 for part in parts) - 1.0) * error
    found = results[0]["beside_dropless"]
    assert (found["units"], found["unit"]) == (len(parts), "batch") and total % CONTEXT
    assert (found["difference"], found["half_of_95_interval"]) == pytest.approx(
        (float(difference_N.mean()), half), rel=1e-4
    )
    for layer in (0, 1):
        table = out[out.index(f"layer {layer:02d}") :].splitlines()
        low, training, dropless = (line.split() for line in table[1:4])
        assert low == ["0.5", f"{found['difference']:+.4f}", "±", f"{half:.4f}", low[-1]]
        assert low[-1] == f"{results[0]['dropped_per_layer'][layer]:.1%}"
        assert training[:2] == ["1.25", "(training)"] and dropless == ["none", "0", "0.0%"]
    words = f"At factor 0.5, {100 * results[0]['dropped']:.2g}% of choices would be dropped, and the loss would"
    assert out.splitlines()[-1] == content["in_words"] and content["in_words"].startswith(words)
    assert "95% interval over 11 batches of this text, not over seeds" in out


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (Estimate(0.0213, 28, 0.002, 27.0), "rise by 0.0213 ± 0.0041 nats over dropless"),
        (Estimate(-0.0213, 3), "fall by 0.0213 nats (3 batches: no interval) over dropless"),
        (Estimate(0.0013, 28, 0.002, 27.0), "not change beyond chance (+0.0013 ± 0.0041 nats)"),
        (Estimate(0.0, 28), "stay the same"),
    ],
)
def test_a_difference_is_said_in_words(one: Estimate, words: str) -> None:
    assert measuring._changed(one, "batch") == words


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"router": family("threshold", warmup_steps=0)}, "router=threshold has no capacity"),
        (
            {"router": family("expert_choice")},
            "router=expert_choice has no capacity in evaluation; see --training-rule",
        ),
        ({"switch_every": 0}, "a dense model has no capacity"),
    ],
)
def test_a_factor_that_limits_nothing_is_said_to_change_nothing(
    changes: dict[str, Any], says: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(model=tiny_model(**changes))
    assert main(["--capacity-factor", "1", "--no-baselines"]) == 0
    assert f"--capacity-factor changes nothing: {says}" in capsys.readouterr().err.splitlines()
    assert len(json.loads((run / "evaluate.json").read_text())["results"]) == 1


def test_without_options_the_runs_own_validation_is_repeated(make_run: MakeRun) -> None:
    run = make_run(model=tiny_model(eval_capacity_factor=0.5), precision="bf16")
    assert main([]) == 0
    content = json.loads((run / "evaluate.json").read_text())
    assert (content["precision"], content["results"][0]["capacity_factor"]) == ("bf16", 0.5)
    expected = measured(tiny_model(), factor=0.5, precision="bf16")
    assert content["results"][0]["loss"] == pytest.approx(expected.loss, abs=1e-6)


@pytest.mark.parametrize("uniform", [False, True])
def test_accuracy_counts_the_most_probable_and_the_five_most_probable_characters(uniform: bool) -> None:
    """Of equally probable ones those with the smaller ids: a uniform model always says 0, and 0 to 4."""
    model, hits = uniform_model() if uniform else tiny_model(), []
    how: Any = {"context_length": CONTEXT, "batch_size": BATCH_SIZE, "capacity_factor": None, "precision": "fp32"}
    result = evaluate(model, VALIDATION, **how, tally=AccuracyTally())
    with torch.inference_mode():
        for start in range(0, len(VALIDATION) - 1, CONTEXT):
            window = VALIDATION[start : start + CONTEXT + 1]
            order_SV = model(window[None, :-1]).logits[0].argsort(dim=-1, descending=True, stable=True).tolist()
            hits += [order_V.index(target) for order_V, target in zip(order_SV, window[1:].tolist(), strict=True)]
    if uniform:
        assert hits == VALIDATION[1:].tolist()
    assert result.top_1 == sum(rank < 1 for rank in hits) / len(hits)
    assert result.top_5 == sum(rank < 5 for rank in hits) / len(hits) > 0


def test_baselines_and_what_a_sample_copies_stand_below_the_rows(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run, model, vocabulary = make_run(), tiny_model(), Vocabulary.of(TEXT)
    options, file = ["--capacity-factor", "1", "none"], run / "evaluate.json"
    assert main([*options, "--no-baselines"]) == 0
    assert "gram" not in capsys.readouterr().out and "baselines" not in json.loads(file.read_text())
    assert main(options) == 0
    content, (*_, table, verdict, _) = json.loads(file.read_text()), capsys.readouterr().out.split("\n\n")
    lines = table.splitlines()
    ids, border = vocabulary.encode(TEXT).numpy(), len(TEXT) - len(VALIDATION)
    assert content["baselines"] == baselines(ids[:border], ids[border:], vocab_size=V)
    length = len(VALIDATION)  # not more than is held out
    sample = ["".join(generate(model, vocabulary, "", length=length, temperature=1.0, seed=0))]
    copied, last = content["copied"], content["results"][-1]
    assert (copied["characters"], copied["held_out_share_of_20_grams"]) == (length, 1.0)  # TEXT repeats a line
    assert 0 < copied["longest_run"] == len(copied["longest_run_text"])
    assert any(copied["longest_run_text"] in text for text in sample) and copied["longest_run_text"] in TEXT
    rows = [*content["baselines"].values(), last]
    for line, name, row in zip(
        lines[1:], ("unigram", "bigram", "5-gram Kneser-Ney", "model, factor none"), rows, strict=True
    ):
        figures = [f"{row['loss']:.4f}", f"{row['perplexity']:.3f}", f"{row['bits_per_character']:.4f}"]
        assert line.split() == [*name.split(), *figures, f"{row['top_1']:.2%}", f"{row['top_5']:.2%}"]
    worse = last["loss"] - min(one["loss"] for one in content["baselines"].values())
    assert worse > 0.0 and verdict.startswith("The model loses to the best that counts alone, ")
    assert verdict.endswith(f", by {worse:.4f} nats.")


def test_a_text_of_many_characters_has_no_baselines_and_a_line_says_so(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    monkeypatch.setattr("switch_lm.measure.ngrams.MOST_DISTINCT", V - 1)
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "baselines: skipped: over 4,000 distinct characters, or 100,000,000 probabilities" in out
    assert "; the longest copied passage has " in out
    assert json.loads((run / "evaluate.json").read_text())["baselines"] is None


def test_options_change_batch_size_precision_and_where_the_results_go(make_run: MakeRun) -> None:
    run = make_run(precision="bf16")
    options = ["--batch-size", "2", "--precision", "fp32", "--json", "here.json", "--capacity-factor", "0.5"]
    assert main(options) == 0
    content = json.loads(Path("here.json").read_text())
    assert (content["batch_size"], content["precision"]) == (2, "fp32")
    assert content["results"][0]["dropped"] == measured(tiny_model(), factor=0.5, batch_size=2).dropped
    assert not (run / "evaluate.json").exists()


def test_outputs_says_where_the_run_is_searched_and_its_results_go(make_run: MakeRun) -> None:
    make_run("mine")
    Path("outputs").rename("elsewhere")
    assert main(["--run", "mine"]) == 1
    assert main(["--run", "mine", "--outputs", "elsewhere"]) == 0
    assert Path("elsewhere/runs/mine/evaluate.json").is_file()
    assert not Path("outputs").exists()


def test_nanogpts_protocol_is_reported_beside_the_whole_split(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With half of the 95% interval over draws: of three t(2) = 4.303 times their deviation over sqrt(3)."""
    run = make_run()
    monkeypatch.setattr(measuring, "nanogpt_estimates", lambda *_, **__: [1.9, 2.0, 2.1])
    assert main(["--nanogpt-protocol", "3"]) == 0
    entry = json.loads((run / "evaluate.json").read_text())["results"][0]["nanogpt_protocol"]
    half = 4.30265 * 0.1 / math.sqrt(3)
    assert (entry["mean"], entry["half_of_95_interval"]) == pytest.approx((2.0, half), rel=1e-5)
    assert entry["draws"] == [1.9, 2.0, 2.1] and "standard_deviation" not in entry
    out = capsys.readouterr().out
    assert f"2.0000 ± {half:.4f}" in out and "3 draws, ± half of the 95% interval" in out


@pytest.mark.parametrize("num_draws", [1, 3])
def test_a_single_draw_of_nanogpts_estimate_and_equal_ones_have_no_interval(
    num_draws: int, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(model=uniform_model())
    assert main(["--nanogpt-protocol", str(num_draws), "--no-baselines"]) == 0
    entry = json.loads((run / "evaluate.json").read_text())["results"][0]["nanogpt_protocol"]
    assert entry["draws"] == pytest.approx([math.log(V)] * num_draws, abs=1e-6)
    assert entry["mean"] == pytest.approx(math.log(V), abs=1e-6) and entry["half_of_95_interval"] is None
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"   {math.log(V):.4f}")


def test_nanogpts_protocol_is_refused_where_no_window_fits(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(text=TEXT[:160])
    assert main(["--nanogpt-protocol"]) == 1
    assert "the validation split has 16 characters; --nanogpt-protocol draws windows of 17" in capsys.readouterr().err


def test_another_text_than_that_of_training_is_refused(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    Path("text.txt").rename("moved.txt")
    Path("text.txt").write_text(TEXT[:-1])
    assert main([]) == 1
    assert "text.txt has sha256" in (message := capsys.readouterr().err)
    assert "give that text with --data FILE" in message
    assert main(["--data", "moved.txt"]) == 0


@pytest.mark.parametrize("name", ["evaluate", "check", "inspect"])
def test_a_validation_split_without_a_prediction_is_named(
    name: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(text=TEXT[:5])
    assert import_module(f"switch_lm.{name}").main([]) in (1, 2)
    assert "the validation split has 1 character; it needs" in capsys.readouterr().err


def test_a_text_that_is_gone_ends_with_1(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    Path("text.txt").unlink()
    assert main([]) == 1
    assert "--data FILE" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--capacity-factor 0", "--capacity-factor nan", "--batch-size 0"])
def test_a_bad_value_is_refused_before_any_model_is_searched(
    option: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    name, value = option.split()
    with pytest.raises(SystemExit, match="2"):
        main([name, value])
    message = capsys.readouterr().err.splitlines()[-1]
    assert all(part in message for part in (name, f"'{value}' must be a", "give for example"))


def test_no_run_ends_with_1_and_says_how_to_train_one(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "python -m switch_lm.train" in capsys.readouterr().err


def test_a_loss_beyond_exp_has_a_row_and_valid_json(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model()
    model.norm.weight.data *= 1e8  # and with it every logit
    run = make_run(model=model)
    assert main(["--device", "cpu", "--threads", "1", "--no-baselines"]) == 0
    heading, row = capsys.readouterr().out.splitlines()[-2:]
    assert len(row) == len(heading) and "inf" in row and "e+0" in row
    (result,) = json.loads((run / "evaluate.json").read_text(), parse_constant=pytest.fail)["results"]
    assert result["perplexity"] is None and result["loss"] > 1e6
