"""What boards show once per leg of a run: the configuration, a row of hyperparameters, and samples of text."""

from dataclasses import asdict
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf

from switch_lm.config.legs import read_legs
from switch_lm.config.reading import literals
from switch_lm.config.rules import flatten, show
from switch_lm.config.schema import Config
from switch_lm.generation.sampling import generate
from switch_lm.measure.ledger import ledger_table, run_ledger
from switch_lm.pages.characters import harmless

HPARAMS = {  # TensorBoard shows the first five columns that differ, or in the order of their names
    "alpha": "alpha", "batch": "data.batch_size", "context": "model.context_length", "dropout": "model.dropout",
    "experts": "model.num_experts", "layers": "model.num_layers", "lr": "optim.lr", "matrix_lr": "optim.matrix_lr",
    "optim": "optim.name", "router": "router.name", "seed": "seed", "steps": "trainer.max_steps",
    "switch_every": "model.switch_every", "top_k": "router.top_k", "width": "model.d_model", "d_ff": "model.d_ff",
}  # fmt: skip
METRICS = {"val_loss": "val/loss", "dropped": "moe/dropped_share", "tokens_per_second": "perf/tokens_per_second"}


def hparams(config: Config) -> dict[str, Any]:
    """The run's row: the same columns in every run, none of them empty.

    The capacity factor is text: of numbers and None the page would draw only the numbers.
    """
    model, flat = config.model, flatten(asdict(config))
    factor = "dropless" if model.capacity_factor is None else show(float(model.capacity_factor))
    row = {name: flat.get(key, "-") for name, key in HPARAMS.items()}
    return row | {"cap": factor if model.num_switch_layers else "dense"}  # the others would make more columns differ


class Dashboard(Callback):
    """Writes what boards show once per run, and the computation so far after each validation."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        config, log = pl_module.config, pl_module.run_log
        begins = max([0, *(leg.after for leg in read_legs(config.optim.legs))])
        if trainer.global_step > begins:
            return
        text = OmegaConf.to_yaml(OmegaConf.create(literals(asdict(config))))
        log.text("summary/configuration", _verbatim(text), begins)
        log.text("summary/computation", ledger_table(config, len(pl_module.vocabulary)), begins)
        log.hparams(hparams(config), METRICS)

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
