"""A plugin as a user writes it, outside this package: a router in one file, and its YAML."""

from __future__ import annotations

from pathlib import Path

NAME = "extension"
ROUTER = '''
"""Each token goes to the expert whose probability is the second largest, or has another rank."""

from dataclasses import dataclass

from switch_lm import Expected, Router, Routing


@dataclass
class Options(Router.Options):
    name: str = "second_best"
    rank: int = 2  # 1: the largest probability, 2: the second


def oracle(x_TD, ids_T, weights, options, **how) -> Expected:
    probs_TE = (x_TD.float() @ weights["w_DE"]).softmax(dim=-1)
    chosen = [sorted(range(len(p)), key=lambda e: -p[e])[options.rank - 1] for p in probs_TE.tolist()]
    return Expected.queued([[expert] for expert in chosen], probs_TE, options, **how)


class SecondBest(Router):
    name = "second_best"
    Options = Options
    oracle = staticmethod(oracle)

    def assign(self, x_TD, logits_TE, *, ids_T, position_T, capacity, num_groups) -> Routing:
        probs_TE = logits_TE.softmax(dim=-1)
        expert_TK = probs_TE.topk(self.options.rank, dim=-1).indices[:, -1:]
        return self.token_choice(expert_TK, probs_TE, logits_TE=logits_TE, capacity=capacity, num_groups=num_groups)
'''
YAML = """\
# Each token goes to the expert whose probability is the second largest.
defaults:
  - base

name: second_best
# 1: the largest probability, 2: the second.
rank: 2
"""


def write(folder: Path) -> str:
    """Writes the package into a folder; what SWITCH_LM_PLUGINS must hold to have it."""
    package = folder / NAME
    (package / "configs" / "router").mkdir(parents=True)
    (package / "__init__.py").write_text(f"from {NAME} import router\n")
    (package / "router.py").write_text(ROUTER)
    (package / "configs" / "router" / "second_best.yaml").write_text(YAML)
    return NAME
