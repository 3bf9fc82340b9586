"""An export for transformers: without our package, its model and tokenizer give the logits and texts of ours."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TEXT, MakeRun, checkpoint_of, tiny_model

import switch_lm
from switch_lm import inspect
from switch_lm.export import main
from switch_lm.generation.sampling import generate
from switch_lm.routers.options import (
    BalanceOptions,
    ExpertChoiceOptions,
    HashOptions,
    RouterOptions,
    SigmoidOptions,
    SwitchOptions,
    TopKOptions,
    UniformOptions,
)
from switch_lm.storage import checkpoint
from switch_lm.storage.checkpoint import CheckpointError
from switch_lm.storage.runs import RunError

if find_spec("transformers") is None:
    pytest.skip("no transformers: get it with `make peers`", allow_module_level=True)

CASES: list[tuple[RouterOptions, dict[str, Any]]] = [
    (SwitchOptions(), {"tie_embeddings": True, "shared_expert": True}),
    (TopKOptions(top_k=2, renormalize_gates=True), {"position": "learned", "activation": "gelu"}),
    (SigmoidOptions(top_k=2), {"balance": BalanceOptions(name="sign"), "switch_every": 2}),
    (HashOptions(), {"position": "none"}),
    (UniformOptions(), {}),
    (SwitchOptions(), {"switch_every": 0}),
]


@pytest.mark.parametrize(("router", "changes"), CASES, ids=lambda value: getattr(value, "name", ""))
def test_logits_are_equal_and_greedy_texts_too_past_the_context(
    router: RouterOptions, changes: dict[str, Any], make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest difference of the logits is 0, of float32 alike: the operations are the same."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
        from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    model = tiny_model(router=router, **changes)
    make_run("tiny", model=model)
    assert main(["--run", "tiny", "--to", "given", "--format", "transformers"]) == 0
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "switch_lm"}
    for name in kept:
        monkeypatch.setitem(sys.modules, name, None)  # its code imports nothing of ours
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoModelForCausalLM.from_pretrained("given", trust_remote_code=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained("given", trust_remote_code=True)
    for name, module in kept.items():
        monkeypatch.setitem(sys.modules, name, module)
    run = switch_lm.load("given")
    ids_BS = run.vocabulary.encode(TEXT[:48]).view(3, 16)
    with torch.no_grad():
        ours, same, of_export = model(ids_BS).logits, theirs(ids_BS).logits, run.model(ids_BS).logits
    assert torch.equal(ours, same) and torch.equal(ours, of_export)
    loss = theirs(ids_BS, labels=ids_BS).loss
    logits, wanted = ours[:, :-1].flatten(0, 1), ids_BS[:, 1:].flatten()
    assert loss.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, wanted).item())
    prompt = "To be,\n or"
    assert tokenizer(prompt).input_ids == run.vocabulary.encode(prompt).tolist()
    for beginning in (prompt, TEXT[:30]):  # of 16 characters that it reads at once
        written = "".join(generate(model, run.vocabulary, beginning, length=50, temperature=0.0))
        given = tokenizer(beginning, return_tensors="pt").input_ids
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (out,) = theirs.generate(given, max_new_tokens=50, do_sample=False)
        assert tokenizer.decode(out) == beginning + written
    with pytest.raises(ValueError, match="without padding"):
        theirs(ids_BS, attention_mask=torch.tensor([[0] + [1] * 15] * 3))
    theirs.train()(ids_BS, labels=ids_BS).loss.backward()  # it can be trained on
    assert theirs.model.blocks[0].attention.qkv.weight.grad.abs().max() > 0
    assert (theirs.model.head.weight is theirs.model.embedding.weight) == model.config.tie_embeddings


def older(folder: Path) -> None:
    content = checkpoint_of(tiny_model(), TEXT, "fp32")
    del content["switch_lm"]["router"]
    checkpoint.write(content, folder / "checkpoints" / "best.ckpt")


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (lambda folder: Path("there").mkdir(), ["--to", "there"], "--to there exists: .*give another"),
        (older, [], "older version of switch_lm.*train the run again"),
        (None, ["--run", "other"], "'other' is not a run"),
        (None, ["--run", "text.txt"], "cannot be read as a checkpoint"),
        (ExpertChoiceOptions(), ["--format", "transformers"], "router=expert_choice: .*give --format safetensors"),
        (1.5, ["--format", "transformers"], "model.eval_capacity_factor=1.5: .*give --format safetensors"),
    ],
)
def test_what_cannot_be_exported_ends_with_2_and_one_line_that_names_the_fix(
    change: Any, arguments: list[str], said: str, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"eval_capacity_factor": change} if isinstance(change, float) else {}
    model = tiny_model(router=change if isinstance(change, RouterOptions) else None, **changes)
    folder = make_run("tiny", model=model)
    if callable(change):
        change(folder)
    before = sorted(Path().iterdir())
    assert main(["--run", "tiny", "--to", "given", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("model: ")]
    assert re.search(said, line)
    assert sorted(Path().iterdir()) == before


def test_an_export_of_any_router_is_read_back_and_names_what_it_holds(make_run: MakeRun) -> None:
    model = tiny_model(router=ExpertChoiceOptions(), eval_capacity_factor=1.5, tie_embeddings=True)
    folder = make_run("tiny", model=model)
    (folder / "result.json").write_text('{"val_loss": 1.5, "best_val_loss": 1.25}')
    findings = [{"verdict": verdict} for verdict in ("PASS", "PASS", "LEAKS")]
    (folder / "check.json").write_text(json.dumps({"checkpoint": "outputs/best.ckpt", "findings": findings}))
    assert main(["--to", "a/given"]) == 0
    assert sorted(file.name for file in Path("a/given").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "vocabulary.json",
    ]  # fmt: skip
    given = switch_lm.load("a/given")
    assert (given.model.config, given.model.router_options) == (model.config, model.router_options)
    assert all(torch.equal(x, given.model.state_dict()[name]) for name, x in model.state_dict().items())
    assert given.header == switch_lm.load(folder).header
    card = Path("a/given/README.md").read_text()
    assert all(fact in card for fact in ("1.2500 nats", "2 PASS, 1 LEAKS", given.header.corpus_sha256))
    os.utime(folder / "check.json", (0, 0))  # so it is of weights that were replaced
    assert main(["--to", "later"]) == 0 and "LEAKS" not in Path("later/README.md").read_text()
    with pytest.raises(RunError, match=r"no metrics\.jsonl.*load the run itself"):
        given.history()
    for damage in ('{"format": 2}', "[]", None):
        config = Path("a/given/config.json")
        config.write_text(damage) if damage else config.unlink()
        with pytest.raises(CheckpointError, match=r"a/given is no export .*make it again: "):
            switch_lm.load("a/given")
        assert inspect.main(["--run", "a/given"]) == 2  # as every command does


def test_an_export_that_is_killed_or_meets_a_full_disk_leaves_no_folder(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("tiny")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    before = sorted(Path().iterdir())
    for fails, code in ((full, 1), (killed, 130)):
        with monkeypatch.context() as patch:
            patch.setattr("os.rename", fails)
            assert main(["--to", "given"]) == code
        assert sorted(Path().iterdir()) == before
    assert "make room, or give another with --to DIR" in capsys.readouterr().err
    (left := Path(".given.0.part")).mkdir()  # as kill -9 leaves it
    os.utime(left, (0, 0))
    assert main(["--to", "given"]) == 0
    assert [path for path in sorted(Path().iterdir()) if path not in before] == [Path("given")]


def test_without_the_extra_one_line_names_it(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("tiny")
    monkeypatch.setattr("switch_lm.commandline.command.find_spec", lambda name: None)
    for command, arguments in ((main, ["--to", "given"]), (inspect.main, ["--routes", "routes.parquet"])):
        assert command(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "pip install 'switch-lm[export]'" in line


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_inspect_writes_the_routes_of_the_split_as_training_would_drop_them(kind: str, make_run: MakeRun) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    text = TEXT * 3
    make_run("tiny", model=tiny_model(capacity_factor=0.5), text=text)
    assert inspect.main(["--run", "tiny", "--routes", f"routes.{kind}"]) == 0
    if kind == "csv":
        rows = list(csv.DictReader(io.StringIO(Path("routes.csv").read_bytes().decode(), newline="")))
    else:
        from pyarrow import parquet

        rows = parquet.read_table("routes.parquet").to_pylist()
    run = switch_lm.load("tiny")
    split = text[round(len(text) * 0.9) :]
    wanted = run.routing(split, capacity_factor=0.5)
    assert [str(row["character"]) for row in rows[::2]] == list(split)
    for name in wanted.dtype.names or ():
        assert [str(row[name]) for row in rows[:400]] == [str(x) for x in wanted[name][:400].tolist()] or name == "gate"
    gates = [float(row["gate"]) for row in rows]
    assert gates == pytest.approx(wanted["gate"].tolist())
    assert 0.2 < np.mean([str(row["kept"]) == "False" for row in rows]) < 0.8
