"""How a run's computation is told: in two lines for the console, as a table for TensorBoard."""

from __future__ import annotations

from dataclasses import replace

from switch_lm.config.schema import Config
from switch_lm.measure.ledger import LEFT_OUT, run_ledger

UNITS = {"PFLOP": 1e15, "TFLOP": 1e12, "GFLOP": 1e9, "MFLOP": 1e6}


def in_words(config: Config, vocab: int) -> str:
    """What a token costs and where it goes, if the load is even; then what a step costs."""
    work = run_ledger(config, vocab_size=vocab)
    dense = run_ledger(replace(config, model=replace(config.model, switch_every=0)), vocab_size=vocab)
    unit, kinds = _unit(work.forward), work.by_kind()
    names = {"attention": "attention", "feed_forward": "dense feed-forward", "useful": "experts",
             "padded": "their empty places", "router": "router", "head": "head"}  # fmt: skip
    parts = [f"{name} {_in(unit, kinds[kind])}" for kind, name in names.items() if kinds[kind] > 0.0]
    a_step = f"{_in(_unit(work.per_step), work.per_step)} {_unit(work.per_step)} a step"
    if work.optimizer_per_step > 0.0:
        a_step += f", {_in(_unit(work.per_step), work.optimizer_per_step)} more in {config.optim.name}"
    return (
        f"{_in(unit, work.forward)} {unit} a token forward: {', '.join(parts)}\n"
        f"{work.forward / dense.forward:.2f} x that of model=dense; forward and backward {a_step}"
    )


def _unit(flops: float) -> str:
    return next((unit for unit, size in UNITS.items() if flops >= size), "MFLOP")


def _in(unit: str, flops: float) -> str:
    return "<0.01" if flops < 0.005 * UNITS[unit] else f"{flops / UNITS[unit]:,.2f}"


def as_table(config: Config, vocab: int) -> str:
    """Markdown: MFLOP a token forward, by layer and kind, if the load is even; then what a step costs."""
    work = run_ledger(config, vocab_size=vocab)
    rows = {f"layer {number:02d}": layer.as_plain(1e-6) for number, layer in enumerate(work.layers)}
    rows |= {"head": {"executed": 1e-6 * work.head}, "model": work.by_kind(1e-6)}
    kinds = list(work.total.as_plain())
    lines = ["MFLOP a token, forward | " + " | ".join(kinds), "|".join(["---"] * (len(kinds) + 1))]
    for name, values in rows.items():
        lines.append(" | ".join([name, *(f"{values[kind]:.3f}" if kind in values else "-" for kind in kinds)]))
    lines += ["", f"A step: {1e-9 * work.per_step:.2f} GFLOP forward and backward, of {work.tokens_per_step:,} tokens"]
    lines[-1] += f"; {1e-9 * work.optimizer_per_step:.2f} more in the optimizer. Only matrix products are counted."
    total, active = config.model.num_params(vocab), config.model.num_active_params(vocab)
    lines += ["", f"Parameters: {total:,} in all, {active:,} active for each token."]
    return "\n".join([*lines, "", *(f"* left out: {text}" for text in LEFT_OUT)])
