"""The dashboard as `make tensorboard` serves it: a real server answers what its pages request."""

from __future__ import annotations

import html
import io
import json
import re
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
import webbrowser
from pathlib import Path
from unittest.mock import Mock

import pytest
from dashboard_server import DENSE, EXPERTS, FINDINGS, LAYERS, RUN, Server, server  # noqa: F401  server is a fixture
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from switch_lm import dashboard
from switch_lm.certificate.show import certificate_markdown, write_text
from switch_lm.config.schema import Config
from switch_lm.model.config import ModelConfig
from switch_lm.training.boards.tensorboard import open_writer
from switch_lm.training.callbacks.dashboard import METRICS, hparams

VALIDATIONS, PICTURES = [3, 6], ("load", "share_dropped", "which_characters")
OF_EVERY_RUN = {
    "train/loss", "optim/gradient_norm", "optim/lr_0", "optim/lr_1", "optim/lr_2", "val/loss", "val/window_loss",
    "val/window_loss_train_capacity", "val/window_loss_generation", "perf/tokens_per_second", "perf/training_seconds",
    "perf/training_tflop",
}  # fmt: skip
OF_A_LAYER = (
    "moe/{}/load_max_over_mean", "moe/{}/load_min_over_mean", "moe/{}/entropy_share", "moe/{}/dropped_share",
    "health/{}/language_gradient",
)  # fmt: skip
OF_A_SWITCH_RUN = {"val/load_max_over_mean", "moe/dropped_share", "moe/balance_loss", "optim/lr_3"} | {
    tag.format(f"layer_{layer:02d}") for tag in OF_A_LAYER for layer in range(LAYERS)
}
OF_EACH_EXPERT = {
    f"moe/layer_{layer:02d}/{quantity}/expert_{e:02d}"
    for quantity in ("load", "kept") for layer in range(LAYERS) for e in range(EXPERTS)
}  # fmt: skip


def test_the_scalars_are_64_of_the_experts_and_36_others_and_each_is_explained(server: Server) -> None:  # noqa: F811
    tags = server.get("plugin/scalars/tags")
    assert tags.keys() == {RUN, DENSE}
    assert set(tags[DENSE]) == OF_EVERY_RUN
    assert set(tags[RUN]) == OF_EVERY_RUN | OF_A_SWITCH_RUN | OF_EACH_EXPERT
    assert (len(OF_EACH_EXPERT), len(OF_EVERY_RUN | OF_A_SWITCH_RUN)) == (64, 36)
    page = (Path(__file__).parents[2] / "docs/files.md").read_text(encoding="utf-8")
    table = re.findall(r"^\|(.*?)\|", page[page.index("## Tags") :], re.MULTILINE)
    named = {re.sub("NN|MM", r"\\d\\d", tag).replace("/lr_N", r"/lr_\d") for row in table
             for tag in re.findall("`(.*?)`", row)}  # fmt: skip
    assert [tag for tag in tags[RUN] if not any(re.fullmatch(pattern, tag) for pattern in named)] == []


def test_the_plain_address_leads_to_the_pinned_charts_and_any_other_to_itself(server: Server) -> None:  # noqa: F811
    with urllib.request.urlopen(server.url) as answer:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(answer.url).query)
    assert [card["tag"] for card in json.loads(query["pinnedCards"][0])] == list(dashboard.PINNED)
    assert set(dashboard.PINNED) <= OF_EVERY_RUN | OF_A_SWITCH_RUN and query["smoothing"] == ["0"]
    with urllib.request.urlopen(f"{server.url}/?runFilter=dense") as answer:
        assert answer.url.endswith("/?runFilter=dense")


def test_a_port_that_is_given_is_used_or_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "switch_lm.dashboard", "--outputs", "no", "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    fix = f"TensorBoard cannot start: port {port} is in use; give another with --port N (0: any free one)"
    assert done.stderr.splitlines()[1:] == [fix]  # below the line that there is no run yet


@pytest.mark.parametrize(
    ("terminal", "screen", "opened"),
    [(True, {"DISPLAY": ":0"}, 1), (True, {"WAYLAND_DISPLAY": "w"}, 1), (False, {"DISPLAY": ":0"}, 0), (True, {}, 0),
     (True, {"DISPLAY": ":0", "SSH_CONNECTION": "elsewhere"}, 0)],
)  # fmt: skip
def test_a_browser_is_opened_only_where_somebody_sees_it(
    terminal: bool, screen: dict[str, str], opened: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = Mock(side_effect=webbrowser.Error)  # none that runs: the address is there all the same
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in screen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(webbrowser, "open", browser)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    dashboard._announce("http://127.0.0.1:6006/")
    assert browser.call_count == opened


def test_columns_that_differ_come_first_and_few_others_beside_the_figures(server: Server) -> None:  # noqa: F811
    experiment = server.get("plugin/hparams/experiment", request="{}")
    assert [column["name"] for column in experiment["hparamInfos"]] == ["cap", "switch_every"]
    assert [column["displayName"] for column in experiment["metricInfos"]] == list(METRICS)
    assert set(METRICS.values()) <= OF_EVERY_RUN | OF_A_SWITCH_RUN


def test_pictures_are_written_after_each_validation_and_can_be_read(server: Server) -> None:  # noqa: F811
    tags = {f"routing/{name}/layer_{layer:02d}" for name in PICTURES for layer in range(LAYERS)}
    assert server.get("plugin/images/tags").get(DENSE, {}) == {}
    assert set(server.get("plugin/images/tags")[RUN]) == tags
    for tag in (f"routing/{name}/layer_03" for name in PICTURES):
        entries = server.get("plugin/images/images", run=RUN, tag=tag, sample="0")
        assert [entry["step"] for entry in entries] == VALIDATIONS
        images = [server.read("plugin/images/individualImage", entry["query"]) for entry in entries]
        for content in images:
            with Image.open(io.BytesIO(content)) as image:
                assert image.width > 500 and len(image.convert("RGB").getcolors(1 << 20) or ()) > 3
        assert images[0] != images[1]
    assert set(server.get("plugin/histograms/tags")[RUN]) == {f"routing/margin/layer_{n:02d}" for n in range(LAYERS)}


def test_texts_are_written(server: Server) -> None:  # noqa: F811
    names = {"summary/computation", "summary/configuration", "sample"}
    texts = server.get("plugin/text/tags")
    assert set(texts[DENSE]) == {f"{name}/text_summary" for name in names}
    assert set(texts[RUN]) == {f"{name}/text_summary" for name in names | {"summary/certificate"}}


def test_the_certificate_is_a_table_of_its_findings_and_none_of_it_is_markup(
    server: Server,  # noqa: F811
) -> None:
    (entry,) = server.get("plugin/text/text", run=RUN, tag="summary/certificate/text_summary")
    text = entry["text"][entry["text"].index("<p>") :]  # TensorBoard sets each text in a table
    assert entry["step"] == 6 and text.startswith("<p>1 PASS, 1 LEAKS</p>")
    cells = [
        html.unescape(re.sub("<[^>]+>", "", cell.replace("<br>", " "))) for cell in re.findall("<td>(.*?)</td>", text)
    ]
    words = [f"{f.meaning}; {f.judgement}" if f.judgement else f.meaning for f in FINDINGS]
    assert cells == [
        cell for f, last in zip(FINDINGS, words, strict=True) for cell in (f.check, str(f.verdict), f.measured, last)
    ]
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


def test_dense_and_dropless_runs_have_their_own_values_in_the_column_of_capacities() -> None:
    factors = [
        hparams(Config(model=ModelConfig(**changes)))["cap"]
        for changes in ({"capacity_factor": 2}, {"capacity_factor": None}, {"switch_every": 0})
    ]
    assert factors == ["2.0", "dropless", "dense"]
