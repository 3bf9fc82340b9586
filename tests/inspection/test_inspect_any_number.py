"""Routers that give a token none, one or many experts: which one stands for it, and what counts all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MakeRun, tiny_model
from other_routers import ChosenOptions
from test_inspect_command import LONG, rows, run_with_history
from torch import Tensor

from switch_lm.inspect import main
from switch_lm.inspection.counterfactual import HELD, judge
from switch_lm.inspection.experts_per_token import ExpertsPerToken, experts_per_token
from switch_lm.pages.characters import visible
from switch_lm.probe.reading import Probe, read
from switch_lm.stats.clusters import plus_minus
from switch_lm.storage.checkpoint import read_model
from switch_lm.text.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of(LONG)
PROBE = Probe.of(VOCABULARY.encode(LONG)[int(0.9 * len(LONG)) :], context_length=16)  # what `inspect` reads


def test_the_expert_with_the_largest_gate_stands_for_a_token_and_the_tables_have_all_its_experts_or_none(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_with_history(make_run, router=ChosenOptions())
    assert main(["--run", "tiny", "--out", "there"]) == 0
    model, tables = read_model(folder / "checkpoints" / "best.ckpt")[0].eval(), Path("there/tables").glob("*.csv")
    by_name = {path.stem: rows(path) for path in tables}
    ids_T, reading = PROBE.ids_BS.flatten().tolist(), read(model, PROBE)
    read_T = [visible(VOCABULARY.characters[i]) for i in ids_T]
    with torch.no_grad():
        routings = model(PROBE.ids_BS, capacity_factor=None).routings
    for layer, (router, routing) in enumerate(zip(model.routers, routings, strict=True)):
        cutoff_E = router.get_buffer("cutoff_E").tolist()
        gates_T = [{e: p for e, p in enumerate(p_E) if p > cutoff_E[e]} for p_E in routing.probs_TE.tolist()]
        ranked_T = [sorted(gates, key=lambda e: -gates[e]) for gates in gates_T]  # noqa: B023
        assert reading.expert_LBS[layer].flatten().tolist() == [ranked[0] if ranked else 4 for ranked in ranked_T]
        atlas, listed, means = (
            [row for row in by_name[name] if row["layer"] == str(layer)]
            for name in ("atlas", "assignments", "experts_per_token")
        )
        places = [(16 * int(row["window"]) + int(row["position"]), int(row["expert"])) for row in listed]
        assert places == [(t, e) for t, ranked in enumerate(ranked_T) for e in ranked]
        assert [row["character"] for row in listed] == [read_T[t] for t, _ in places]
        assert [float(row["gate"]) for row in listed] == pytest.approx([gates_T[t][e] for t, e in places], abs=1e-5)
        nobodys = Counter(c for c, gates in zip(read_T, gates_T, strict=True) if not gates)
        assert nobodys == Counter({row["character"]: int(row["count"]) for row in atlas if row["expert"] == "none"})
        frequent = [VOCABULARY.characters[i] for i in sorted(set(ids_T), key=lambda i: (-ids_T.count(i), i))]
        by_character = [row for row in means if row["by"] == "character"]
        assert [row["value"] for row in by_character] == list(map(visible, frequent))
        for row in by_character:
            numbers = [len(gates) for c, gates in zip(read_T, gates_T, strict=True) if c == row["value"]]
            assert (int(row["tokens"]), float(row["experts"]), float(row["without"])) == pytest.approx(
                (len(numbers), sum(numbers) / len(numbers), numbers.count(0) / len(numbers))
            )
        assert [row["value"] for row in means if row["by"] == "difficulty"] == list("01234")
    page, printed = Path("there/inspect.html").read_text(), capsys.readouterr().out
    assert all("How many experts does a token get?" in x and "Tokens without an expert (" in x for x in (page, printed))
    assert "fifth by loss, 0 the easiest" in page and ">none</text>" in page


def numbers_of(number_BS: Tensor) -> ExpertsPerToken | None:
    return experts_per_token(replace(READING, number_LBS=number_BS[None]), PROBE.ids_BS, VOCABULARY.characters)


READING = read(tiny_model(len(VOCABULARY)), PROBE)


def test_that_hard_tokens_get_more_experts_is_detected_and_a_number_at_random_has_no_favourites() -> None:
    assert numbers_of(torch.full_like(READING.number_LBS[0], 2)) is None
    draw, nll_BS = torch.Generator().manual_seed(0), READING.nll_BS
    hard = numbers_of((nll_BS > nll_BS.median()) + torch.randint(2, nll_BS.shape, generator=draw))
    assert hard is not None and hard.hardest_L[0].mean == pytest.approx(1.0, abs=0.3)
    assert hard.findings([3])[0].endswith(f"the hardest has {plus_minus(hard.hardest_L[0], '+.2f')} experts.")
    at_random = [numbers_of(torch.randint(3, nll_BS.shape, generator=draw)) for _ in range(20)]
    assert sum("no difference shows" in one.findings([0])[0] for one in at_random if one) >= 17


def test_a_token_without_an_expert_is_not_judged() -> None:
    nll_EBN = torch.tensor([[1.0, 9.0], [2.0, 0.0], [4.0, 5.0]])[:, None].expand(3, 8, 2)
    open_EBN = torch.tensor([True, False]).expand(3, 8, 2)
    result = judge(nll_EBN, chosen_BN=torch.ones(8, 2, dtype=torch.long), open_EBN=open_EBN, gate=HELD)
    assert (result.best.mean, result.rank.mean, result.best_gains.mean, result.without) == (0.0, 2.0, 1.0, 0.5)
    assert (result.num_experts, result.chance) == (3.0, pytest.approx(1 / 3))
    nobody = judge(nll_EBN, chosen_BN=torch.ones(8, 2, dtype=torch.long), open_EBN=open_EBN & False, gate=HELD)
    assert nobody.findings(1) == [f"With {HELD} nothing could be judged: no token had an expert."]
