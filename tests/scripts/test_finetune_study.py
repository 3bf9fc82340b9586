"""The study of fine-tuning: which runs it asks for, in which order, and what its page says of planted losses."""

from __future__ import annotations

import random
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from switch_lm.config.overrides import composed

# Import as `python scripts/finetune_study.py` does.
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    finetune = import_module("study.finetune")

LEVEL = {finetune.PRETRAINED: 1.5, finetune.SCRATCH: 2.0, finetune.TUNED: 1.8, finetune.REGULARISED: 1.8}
LEVEL |= {finetune.UPCYCLED: 1.9, finetune.NOISY: 1.9}


def line(job: Any) -> dict[str, str]:
    """Fine-tuning lowers the loss by 0.2, more dropout changes only Switch, and runs of one seed share 0.1 x seed."""
    noise = random.Random(job.name).gauss(0.0, 0.002)
    more = -0.1 * (job.how == finetune.REGULARISED and job.model == "switch")
    loss = LEVEL[job.how] + 0.1 * job.seed + more + noise
    known = dict(zip(finetune.Results.KEY, job.key, strict=True)) | {"val_loss": str(loss)}
    return dict.fromkeys(finetune.Results.COLUMNS, "1") | known


def test_each_model_is_pre_trained_once_and_every_run_is_a_configuration_that_is_taken() -> None:
    before = list(finetune.jobs(finetune.Results()))
    assert [job.how for job in before] == [finetune.PRETRAINED] * 2
    results = finetune.Results(tuple(map(line, before)))
    jobs = list(finetune.jobs(results))
    assert len({job.name for job in jobs}) == len(jobs) == 2 + (2 * 3 + 2) * 5
    assert sum(job.steps for job in jobs) == 18_000
    for job in jobs[:10]:
        config = composed(job.words)
        assert (config.seed, config.trainer.max_steps, config.trainer.val_every) == (job.seed, job.steps, job.steps)
        assert (config.model.num_switch_layers == 0) == (job.model == "dense")
        assert config.data.split == ("without_histories" if job in before else "within_play")
        source = {one.model: one.name for one in before}["dense" if "upcycled" in job.how else job.model]
        assert config.init_from == (None if job in before or job.how == finetune.SCRATCH else source)
        assert config.model.upcycle_noise == (0.1 if job.how == finetune.NOISY else 0.0)
        dropouts = (config.model.dropout, config.model.expert_dropout)
        more = (0.1, 0.4) if job.model == "switch" else (0.4, 0.0)
        assert dropouts == (more if job.how == finetune.REGULARISED else (0.1, 0.0))


def test_the_page_gives_paired_corrected_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finetune, "PAGE", tmp_path / "finetune.md")
    results = finetune.Results(tuple(line(job) for job in finetune.jobs(finetune.Results())))
    finetune.write(results)
    assert "Nothing can be compared yet" in finetune.PAGE.read_text()
    finetune.write(finetune.Results(tuple(map(line, finetune.jobs(results)))))
    page = finetune.PAGE.read_text()
    rows = {row.split(" | ")[0].strip("| "): row for row in page.splitlines() if " minus " in row}
    verdicts = {name: row.rstrip(" |").rpartition("| ")[2] for name, row in rows.items()}
    for model in ("dense", "switch"):
        assert verdicts[f"{model} fine-tuned minus {model} from scratch"] == "lower"  # 0.2, though seeds differ by 0.4
    assert verdicts["dense fine-tuned with more dropout minus dense fine-tuned"] == "not resolved"
    assert verdicts["switch fine-tuned with more dropout minus switch fine-tuned"] == "lower"
    assert verdicts["switch from scratch minus dense from scratch"] == "not resolved"
    assert verdicts["switch upcycled minus dense fine-tuned"] == "higher"
    assert verdicts["switch upcycled with noise minus switch upcycled"] == "not resolved"
    assert len(verdicts) == 10 and "none missing" in page and page.count("| 5 |") == 8
