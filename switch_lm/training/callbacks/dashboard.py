"""What boards show once per run: the configuration, a row of hyperparameters, and samples of text."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from switch_lm.config.reading import literals
from switch_lm.config.rules import flatten, show
from switch_lm.config.schema import Config
from switch_lm.generation.sampling import generate
from switch_lm.measure.ledger import ledger_table, run_ledger
from switch_lm.pages.characters import harmless

CAPACITY = "model.capacity_factor"
HPARAMS = (
    "model.num_layers", "model.d_model", "model.d_ff", "model.context_length", "model.num_experts",
    "router.name", "router.top_k", "model.switch_every", CAPACITY, "model.dropout", "alpha", "optim.name", "optim.lr",
    "optim.matrix_lr", "data.batch_size", "trainer.max_steps", "seed",
)  # fmt: skip
METRICS = ("val_loss", "best_val_loss", "dropped", "tokens_per_second")
NO_METRICS = {f"hp/{name}": math.nan for name in METRICS}  # before the end


def hparams(config: Config) -> dict[str, Any]:
    """The run's row: the same columns in every run, none of them empty.

    The capacity factor is text: of numbers and None the page would draw only the numbers.
    """
    model, flat = config.model, flatten(asdict(config))
    factor = "dropless" if model.capacity_factor is None else show(float(model.capacity_factor))
    return {key: flat.get(key, "-") for key in HPARAMS} | {CAPACITY: factor if model.num_switch_layers else "dense"}


def metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a finished run; a dense one drops nothing. A line is drawn only through runs that have all."""
    return {f"hp/{name}": result[name] or 0.0 for name in METRICS}


class Dashboard(Callback):
    """Writes what boards show once per run, and the computation so far after each validation."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        config, log = pl_module.config, pl_module.run_log
        if trainer.global_step > 0:
            return
        log.text("configuration", _verbatim(OmegaConf.to_yaml(OmegaConf.create(literals(asdict(config))))), 0)
        log.text("computation", ledger_table(config, len(pl_module.vocabulary)), 0)
        log.hparams(hparams(config), NO_METRICS)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """For curves of loss against computation."""
        per_step = run_ledger(pl_module.config, vocab_size=len(pl_module.vocabulary)).per_step
        pl_module.run_log.scalars({"perf/training_tflop": 1e-12 * per_step * trainer.global_step}, trainer.global_step)


class Samples(Callback):
    """Writes a sample of the model's text after each validation, without changing training."""

    last = ""

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last = state["last"]

    def figures(self) -> dict[str, Any]:
        """The last one, for result.json."""
        return {"sample": self.last} if self.last else {}

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        config, vocabulary = pl_module.config, pl_module.vocabulary
        if (length := config.logger.sample_length) == 0:
            return
        known = "".join(c for c in config.logger.sample_prompt if c in vocabulary.characters)
        prompt = known or vocabulary.start
        text = ""
        for character in generate(pl_module.model, vocabulary, prompt, length=length, seed=config.seed):
            pl_module.stop_if_asked()
            text += character
        self.last = prompt + text
        pl_module.run_log.text("sample", _verbatim(self.last), trainer.global_step)


def _verbatim(text: str) -> str:
    """As Markdown that is shown as it is, with a sign for what would not be seen."""
    return "\n".join("    " + line for line in harmless(text).split("\n"))
