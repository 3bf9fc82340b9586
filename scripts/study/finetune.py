"""The study of fine-tuning: which runs, what is stored of each, and docs/finetune.md, from the stored results alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from study.lines import Lines
from switch_lm.pages.document import Bullets, Cell, Code, Document, Section, Table
from switch_lm.pages.numbers import interval
from switch_lm.reporting.words import spread
from switch_lm.stats.contrasts import Pool
from switch_lm.stats.intervals import estimate
from switch_lm.storage.files import replace_text

DATA, PAGE, OUTPUTS = Path("docs", "data", "finetune.csv"), Path("docs", "finetune.md"), Path("outputs", "finetune")
DENSE, SWITCH = MODELS = ("dense", "switch")
PRETRAINED, SCRATCH, TUNED, REGULARISED = ("pre-trained", "from scratch", "fine-tuned", "fine-tuned with more dropout")
HOWS = (SCRATCH, TUNED, REGULARISED)
UPCYCLED, NOISY = "upcycled", "upcycled with noise"  # a Switch model from the dense one
WAYS = (*product(MODELS, HOWS), (SWITCH, UPCYCLED), (SWITCH, NOISY))
SEEDS, STEPS, PRETRAINING_STEPS = 5, 300, 3000
NOISE = 0.1  # of the standard deviation of a weight
PLAIN = ("data.split=without_histories", "data.hold_out=null")  # what is pre-trained on
LOWER = ("optim.lr=0.001", "optim.matrix_lr=0.007")  # a third of the default: of weights that are trained already
MORE = {SWITCH: "model.expert_dropout=0.4", DENSE: "model.dropout=0.4"}  # the paper's 0.4; dense has no experts
# float32 and nothing compiled, so that all machines do the same; one validation, after the last step.
COMMON = (
    "logger=[]", "logger.progress=none", "logger.sample_length=0", "logger.per_expert=false", "trainer.precision=fp32",
    "trainer.compile=false",
)  # fmt: skip
FIGURES = ("val_loss", "parameters", "active_parameters", "dropped", "training_seconds", "seconds")
PAIRS = (
    *(((model, TUNED), (model, SCRATCH)) for model in MODELS),
    *(((model, REGULARISED), (model, TUNED)) for model in MODELS),
    *(((SWITCH, how), (DENSE, how)) for how in HOWS),
    *(((SWITCH, UPCYCLED), (model, TUNED)) for model in MODELS),
    ((SWITCH, NOISY), (SWITCH, UPCYCLED)),
)


@dataclass(frozen=True)
class Job:
    """A run."""

    model: str
    how: str
    seed: int

    @property
    def steps(self) -> int:
        return PRETRAINING_STEPS if self.how == PRETRAINED else STEPS

    @property
    def key(self) -> tuple[str, ...]:
        return self.model, self.how, str(self.seed), str(self.steps)

    @property
    def name(self) -> str:
        """Of its run."""
        return "-".join(self.key).replace(",", "").replace(" ", "_")

    @property
    def folder(self) -> Path:
        return OUTPUTS / "runs" / self.name

    @property
    def label(self) -> str:
        return f"{self.model}, {self.how}, seed {self.seed}"

    @property
    def keeps(self) -> bool:
        return self.how == PRETRAINED

    @property
    def words(self) -> list[str]:
        """Its command line: it continues what was stopped or killed."""
        own = ["experiment=finetune", *(["model=dense"] if self.model == DENSE else [])]
        own += PLAIN if self.how == PRETRAINED else ()
        if self.how not in (PRETRAINED, SCRATCH):
            source = DENSE if self.how in (UPCYCLED, NOISY) else self.model
            own += [f"init_from={Job(source, PRETRAINED, 0).name}", *LOWER]
        own += [MORE[self.model]] if self.how == REGULARISED else []
        own += [f"model.upcycle_noise={NOISE}"] if self.how == NOISY else []
        own += [f"seed={self.seed}", f"trainer.max_steps={self.steps}", *COMMON]
        return [*own, f"name={self.name}", "resume=auto", f"outputs={OUTPUTS}"]

    def figures(self, result: Mapping[str, Any]) -> dict[str, Any]:
        return {name: result.get(name) for name in FIGURES}


class Results(Lines):
    """The lines of finetune.csv: a run each."""

    KEY = ("model", "how", "seed", "steps")
    KIND = ("model",)
    COLUMNS = (*KEY, *FIGURES, "commit", "machine", "torch")

    def losses(self, model: str, how: str) -> dict[int, float]:
        """By seed."""
        own = [row for row in self.rows if (row["model"], row["how"]) == (model, how)]
        return {int(row["seed"]): float(row["val_loss"]) for row in own}


def jobs(results: Results) -> Iterator[Job]:
    """All runs in their order, as far as it is known: each model is pre-trained once, before all others."""
    before = [Job(model, PRETRAINED, 0) for model in MODELS]
    yield from before
    if not results.missing(before):
        yield from (Job(model, how, seed) for seed, (model, how) in product(range(SEEDS), WAYS))


def write(results: Results) -> None:
    from switch_lm.pages.markdown import to_markdown

    replace_text(PAGE, to_markdown(document(results), pictures=""))


def document(results: Results) -> Document:
    compared, lead, resolved = _compared(results)
    sections = Section("Losses on the last fifth of Henry V", (_losses(results), *compared))
    opening = (Bullets(resolved),) if resolved else ()
    return Document(
        "Fine-tuning at small scale", lead, (sections, Section("How it was measured", _how(results))), opening
    )


def _losses(results: Results) -> Table:
    rows = []
    for model, how in WAYS:
        losses = list(results.losses(model, how).values())
        if losses:
            rows.append(tuple(map(Cell, (model, how, spread(estimate(losses), 4), str(len(losses))))))
    note = "Nats per character after the last step; mean ± half of its 95% interval over seeds."
    return Table("Validation loss", ("Model", "How", "Loss", "Seeds"), tuple(rows), note)


def _compared(results: Results) -> tuple[list[Table], str, tuple[str, ...]]:
    """The differences of all pairs that were run, as a table, in a sentence, and those that are resolved in words."""
    values = {one: losses for one in WAYS if (losses := results.losses(*one))}
    pairs = [pair for pair in PAIRS if set(pair) <= values.keys()]
    rows, resolved = [], []
    for (ours, theirs), one in zip(pairs, Pool(values).family(pairs) if pairs else (), strict=True):
        words = f"{' '.join(ours)} minus {' '.join(theirs)}"
        verdict = ("lower" if one.estimate.mean < 0 else "higher") if one.resolved else "not resolved"
        size = f"{abs(one.estimate.mean):.3f} nats {verdict} than {' '.join(theirs)}"
        resolved += [f"{' '.join(ours)}: {size}"] if one.resolved else []
        figures = Cell(spread(one.estimate, 4), one.estimate.mean), Cell(interval(one.interval, 4))
        rows.append((Cell(words), *figures, Cell(verdict)))
    if not rows:
        return [], "Nothing can be compared yet.", ()
    note = (
        "Runs of one seed are paired: they have the same batches. ± is half of the 95% interval of that difference "
        "alone. The corrected intervals hold simultaneously with 95% confidence."
    )
    table = Table("Differences", ("Difference", "Nats", "95% interval, corrected", "Verdict"), tuple(rows), note)
    lead = f"Of {len(rows)} differences in validation loss, {len(resolved)} are resolved{':' if resolved else '.'}"
    return [table], lead, tuple(resolved)


def _how(results: Results) -> tuple[Code, Bullets]:
    left, rows = results.missing(jobs(results)), results.rows
    facts = {
        name: sorted({row[key] for row in rows} - {""})
        for name, key in (("Machine", "machine"), ("Commit", "commit"), ("Torch", "torch"))
    }
    return Code("make finetune-study  # continues what was stopped; only what is missing is run"), Bullets((
        "Tables 4 and 5 of Switch Transformers at small scale: dropout in fine-tuning, and Switch beside dense.",
        f"{len(rows)} runs, {len(left) or 'none'} missing, one line each in `{DATA}`.",
        f"Each model is pre-trained once, for {PRETRAINING_STEPS:,} steps on all plays except the histories. All seeds "
        "of fine-tuning start from the same weights, so their spread is that of fine-tuning alone.",
        f"Then {STEPS} steps on the first four fifths of Henry V, with dropout 0.1 and a third of the default learning "
        "rates; from scratch with the default ones. Nothing was tuned. More dropout: the paper's 0.4 in the experts; "
        "dense has none, so 0.4 in place of 0.1.",
        "Upcycled: a Switch model whose experts start as copies of the pre-trained dense model's feed-forward, then "
        f"fine-tuned in the same way. With noise: normal noise of {NOISE:.0%} of the weights' standard deviation is "
        "added to each copy.",
        *(f"{name}: {'; '.join(values)}." for name, values in facts.items() if values),
    ))  # fmt: skip
