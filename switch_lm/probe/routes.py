"""Where each character of a text goes, as a table."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from switch_lm.measure.metrics import first_choice
from switch_lm.model.transformer import SwitchLM, evaluating
from switch_lm.probe.reading import switch_layers
from switch_lm.probe.subject import used
from switch_lm.text.vocabulary import Vocabulary
from switch_lm.text.windows import EvaluationBatches

COLUMNS = np.dtype(
    [
        ("place", np.int64),  # in the text, from 0
        ("character", "U1"),
        ("layer", np.int16),  # the number of its block
        ("expert", np.int16),  # that it selected; of several the one with the largest gate, -1 if none
        ("gate", np.float32),  # what the expert's output is multiplied by
        ("kept", np.bool_),  # whether an expert computed it: False if it was dropped, or had none
        ("runner_up", np.int16),  # the most probable other expert; -1 if there is none
    ]
)


def routes(
    model: SwitchLM, vocabulary: Vocabulary, ids: Tensor, *, batch_size: int, capacity_factor: float | None
) -> NDArray[np.void]:
    """A row of COLUMNS for each character (ids, N) and Switch layer, by character, in one array of N x L rows.

    The text is read in windows of the context length, as in validation, `batch_size` of them at a time, which share
    the slots of `capacity_factor`; None: nothing is dropped. ValueError for a dense model or an empty text.
    """
    layers, num_characters = switch_layers(model), len(ids)
    if not num_characters:
        raise ValueError("the text is empty: give at least one character")
    whole = torch.cat([ids, ids[-1:]])  # the last character, which predicts nothing, is read too
    batches = EvaluationBatches(whole, context_length=model.config.context_length, batch_size=batch_size)
    table_NL = np.zeros((num_characters, len(layers)), COLUMNS)
    table_NL["place"], table_NL["layer"] = np.arange(num_characters)[:, None], model.config.switch_blocks
    table_NL["character"] = np.array([*vocabulary.decode(ids)])[:, None]
    start = 0
    with torch.inference_mode(), evaluating(model):
        for ids_BS, _ in batches:
            here = slice(start, start := start + ids_BS.numel())
            ids_BS = ids_BS.to(model.embedding.weight.device)
            for layer, routing in enumerate(model(ids_BS, capacity_factor=capacity_factor).routings):
                first = first_choice(routing)
                kept_T = torch.zeros_like(first.expert_T, dtype=torch.bool)
                of_first_N = used(routing) & (routing.expert_N == first.expert_T[routing.token_N])
                kept_T[routing.token_N[of_first_N]] = routing.kept_N[of_first_N]
                none_T = first.expert_T == routing.num_experts
                columns = first.expert_T.masked_fill(none_T, -1), first.gate_T, kept_T, first.second_T
                for name, column_T in zip(("expert", "gate", "kept", "runner_up"), columns, strict=True):
                    table_NL[name][here, layer] = column_T.cpu().numpy()
    return table_NL.reshape(-1)
