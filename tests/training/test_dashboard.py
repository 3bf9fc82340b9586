"""The dashboard as `make tensorboard` serves it: a real server answers what its pages request."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path

import pytest
from dashboard_server import DENSE, FINDINGS, RUN, Server, server  # noqa: F401  server is a fixture
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from switch_lm.certificate.show import certificate_markdown, write_text
from switch_lm.config.schema import Config
from switch_lm.model.config import ModelConfig
from switch_lm.training.boards.tensorboard import chart_layout, open_writer
from switch_lm.training.callbacks.dashboard import NO_METRICS, hparams, metrics

ALL_STEPS, VALIDATIONS = [1, 2, 3, 4, 5, 6], [3, 6]
LAYERS = ("moe/layer_00", "moe/layer_01")
OF_A_LAYER = (
    "dropped", "dropped_share", "padded_share", "load_max_over_mean", "load_cv", "router_entropy", "mean_gate",
    *(f"{quantity}/expert_{e:02d}" for quantity in ("load", "kept", "mean_prob") for e in range(3)),
)  # fmt: skip
OF_EVERY_RUN = {
    "train/loss", "train/balance_loss", "train/total_loss", "train/perplexity", "train/bits_per_character",
    "optim/gradient_norm", "optim/lr_0", "optim/lr_1", "optim/lr_2", "val/loss", "val/perplexity",
    "val/bits_per_character", "val/window_loss", "val/window_loss_train_capacity", "val/window_loss_generation",
    "perf/tokens_per_second", "perf/training_seconds", "perf/training_tflop", "perf/window_loss_seconds",
    "hp/val_loss", "hp/best_val_loss", "hp/dropped", "hp/tokens_per_second",
}  # fmt: skip
HEALTH = (
    "language_gradient", "balance_gradient", "gradient_cosine", "entropy", "gate_mean", "gate_spread", "max_share",
    "idle_share",
)  # fmt: skip
OF_A_SWITCH_RUN = {
    "val/load_max_over_mean", "val/router_entropy", "moe/dropped_share", "perf/router_health_seconds", "optim/lr_3",
    "perf/routing_pictures_seconds",
    *(f"{layer}/{name}" for layer in LAYERS for name in OF_A_LAYER),
    *(f"{layer.replace('moe', 'health')}/{name}" for layer in LAYERS for name in HEALTH),
}  # fmt: skip


def charts(server: Server) -> dict[str, list[str]]:  # noqa: F811
    """The tags' expressions by the title of the chart, in order of appearance."""
    layout = server.get("plugin/custom_scalars/layout")
    return {chart["title"]: chart["multiline"]["tag"] for group in layout["category"] for chart in group["chart"]}


def test_the_scalars_are_exactly_those_expected(server: Server) -> None:  # noqa: F811
    tags = server.get("plugin/scalars/tags")
    assert tags.keys() == {RUN, DENSE}
    assert set(tags[DENSE]) == OF_EVERY_RUN
    assert set(tags[RUN]) == OF_EVERY_RUN | OF_A_SWITCH_RUN


def test_the_overview_comes_first_and_both_runs_share_one_layout(server: Server) -> None:  # noqa: F811
    layout = server.get("plugin/custom_scalars/layout")
    assert [group["title"] for group in layout["category"]] == ["overview", "layer 00", "layer 01"]
    titles = [[chart["title"] for chart in group["chart"]] for group in layout["category"]]
    assert titles == [list(group) for group in chart_layout(range(2)).values()]


def test_each_chart_draws_its_tags_at_every_step_and_no_others(server: Server) -> None:  # noqa: F811
    layers = ("layer_00", "layer_01")
    expected = [
        {f"val/{name}" for name in ("loss", "window_loss", "window_loss_train_capacity", "window_loss_generation")}
    ]
    expected += [{f"moe/{layer}/dropped_share" for layer in layers}, {"train/balance_loss"}]
    expected += [{f"moe/{layer}/{name}" for layer in layers} for name in ("router_entropy", "mean_gate")]
    expected += [{f"health/{layer}/language_gradient" for layer in layers}]
    for layer in layers:
        expected += [{f"moe/{layer}/{q}/expert_{e:02d}" for e in range(3)} for q in ("load", "kept", "mean_prob")]
    for (title, patterns), tags in zip(charts(server).items(), expected, strict=True):
        drawn: dict[str, list[list[float]]] = {}
        for pattern in patterns:
            drawn |= server.get("plugin/custom_scalars/scalars", run=RUN, tag=pattern)["tag_to_events"]
        assert drawn.keys() == tags, title
        for tag, points in drawn.items():
            steps = {"val/loss": VALIDATIONS, "health": [2, 4, 6], "moe": ALL_STEPS, "train": ALL_STEPS}
            known = steps.get(tag, steps.get(tag.split("/")[0], [6]))
            assert [step for _, step, _ in points] == known, tag


def test_a_dense_run_draws_its_validation_losses(server: Server) -> None:  # noqa: F811
    assert chart_layout(range(0)).keys() == {"overview"}
    ((title, (_, patterns)),) = chart_layout(range(0))["overview"].items()
    assert charts(server)[title] == patterns
    points = server.get("plugin/custom_scalars/scalars", run=DENSE, tag=r"^val/loss$")["tag_to_events"]
    assert [step for _, step, _ in points["val/loss"]] == VALIDATIONS


@pytest.mark.parametrize("num_layers", [0, 1, 12])
def test_expressions_are_anchored_and_titles_are_the_same_in_every_run(num_layers: int) -> None:
    layout, larger = chart_layout(range(num_layers)), chart_layout(range(13))
    for category, group in layout.items():
        for title, chart in group.items():
            assert larger[category][title] == chart
            assert isinstance(chart[1], list)
            assert all(re.fullmatch(r"\^.*\$", pattern) for pattern in chart[1])


def test_pictures_are_written_after_each_validation_and_can_be_read(server: Server) -> None:  # noqa: F811
    tags = {"routing/expert_load_over_time", "routing/layer_00_atlas", "routing/layer_01_atlas"}
    assert server.get("plugin/images/tags").get(DENSE, {}) == {}
    assert set(server.get("plugin/images/tags")[RUN]) == tags
    for tag in tags:
        entries = server.get("plugin/images/images", run=RUN, tag=tag, sample="0")
        assert [entry["step"] for entry in entries] == VALIDATIONS
        images = [server.read("plugin/images/individualImage", entry["query"]) for entry in entries]
        for content in images:
            with Image.open(io.BytesIO(content)) as image:
                assert image.width > 500 and len(image.convert("RGB").getcolors(1 << 20) or ()) > 3
        assert images[0] != images[1]


def test_texts_and_one_row_of_hyperparameters_are_written(server: Server) -> None:  # noqa: F811
    names = {"computation", "configuration", "sample"}
    texts = server.get("plugin/text/tags")
    assert set(texts[DENSE]) == {f"{name}/text_summary" for name in names}
    assert set(texts[RUN]) == {f"{name}/text_summary" for name in names | {"certificate"}}
    points = server.get("plugin/scalars/scalars", run=RUN, tag="hp/val_loss")
    assert points[-1][1] == 6


def test_the_certificate_is_a_table_of_its_findings_and_none_of_it_is_markup(
    server: Server,  # noqa: F811
) -> None:
    (entry,) = server.get("plugin/text/text", run=RUN, tag="certificate/text_summary")
    text = entry["text"][entry["text"].index("<p>") :]  # TensorBoard sets each text in a table
    assert entry["step"] == 6 and text.startswith("<p>1 PASS, 1 LEAKS</p>")
    cells = [
        html.unescape(re.sub("<[^>]+>", "", cell.replace("<br>", " "))) for cell in re.findall("<td>(.*?)</td>", text)
    ]
    assert cells == [value for f in FINDINGS for value in (f.check, str(f.verdict), f.measured, f.meaning)]
    assert "<em>" not in text and "<other>" not in text


def test_a_text_that_is_written_again_replaces_the_old_one_and_no_other_text(tmp_path: Path) -> None:
    for tag, text in (("certificate", "first"), ("notes", "other"), ("certificate", "second")):
        write_text(tmp_path, tag, text, 7, open_writer=open_writer)
    events = EventAccumulator(str(tmp_path)).Reload()
    texts = {tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(tag)]
             for tag in events.Tags()["tensors"]}  # fmt: skip
    assert texts == {"certificate/text_summary": [(7, "second")], "notes/text_summary": [(7, "other")]}
    assert certificate_markdown([]).splitlines()[2:] == [
        "| check | verdict | measured | what it means |",
        "| --- | --- | --- | --- |",
    ]


def test_dense_and_dropless_runs_have_their_own_values_among_the_hyperparameters() -> None:
    factors = [
        hparams(Config(model=ModelConfig(**changes)))["model.capacity_factor"]
        for changes in ({"capacity_factor": 2}, {"capacity_factor": None}, {"switch_every": 0})
    ]
    assert factors == ["2.0", "dropless", "dense"]
    result = {"val_loss": 1.5, "best_val_loss": 1.4, "dropped": None, "tokens_per_second": 9.0}
    assert metrics(result).keys() == NO_METRICS.keys()
    assert metrics(result)["hp/dropped"] == 0.0  # without it the page omits a dense run
