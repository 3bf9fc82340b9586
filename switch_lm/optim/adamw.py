"""AdamW on everything (Loshchilov and Hutter 2019)."""

from collections.abc import Iterable, Sequence

from torch import nn
from torch.optim import AdamW, Optimizer

from switch_lm.optim.base import Recipe
from switch_lm.optim.options import AdamWOptions


class AdamWRecipe(Recipe):
    name = "adamw"
    Options = AdamWOptions
    options: AdamWOptions

    def optimizers(self) -> Sequence[Optimizer]:
        return [self.adamw(self.model.parameters())]

    def adamw(self, parameters: Iterable[nn.Parameter]) -> AdamW:
        """AdamW for some of the parameters; recipes that derive from this one use it for the rest."""
        return AdamW(self.groups(parameters), betas=(self.options.beta1, self.options.beta2), fused=True)
