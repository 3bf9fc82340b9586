"""The page of a sample from a trained model, with each character coloured by its expert."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from switch_lm.generation.trace import Choice, Traced
from switch_lm.pages.characters import harmless, isolated
from switch_lm.pages.coloured_text import NOBODY, LayerText, coloured_text
from switch_lm.pages.expert_maps import layer_name
from switch_lm.pages.page import render
from switch_lm.storage.runs import run_name
from switch_lm.text.characters import shell_word


@dataclass(frozen=True)
class Sampling:
    """How a sample was made: the options of the command line."""

    checkpoint: Path
    prompt: str
    length: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    num_experts: int
    blocks: Sequence[int]  # with a Switch layer

    @property
    def command(self) -> str:
        """The command that makes the same sample."""
        options = [f"--prompt={self.prompt}"] if self.prompt else []
        options += ["--length", str(self.length), "--temperature", f"{self.temperature:g}", "--seed", str(self.seed)]
        options += [] if self.top_k is None else ["--top-k", str(self.top_k)]
        options += [] if self.top_p is None else ["--top-p", f"{self.top_p:g}"]
        words = ["python", "-m", "switch_lm.generate", "--run", str(self.checkpoint), *options]
        return " ".join(map(shell_word, words))


def sample_page(traced: Sequence[Traced], sampling: Sampling) -> str:
    """The page as HTML without other files; for a dense model it shows the probability of each character."""
    text = "".join(one.character for one in traced)
    layers = layer_texts(traced, sampling.blocks, num_experts=sampling.num_experts)
    several = len(layers) > 1  # shown all at once
    part = coloured_text("sample", text, layers, odds=[one.odds for one in traced], first=-1 if several else 0)
    title = f"A sample from {run_name(sampling.checkpoint)}"
    colour = "has the colour and the number of the expert that processed it" if layers else "is coloured by probability"
    colour = "has a stripe for each layer, in the colour of the expert that processed it there" if several else colour
    prompt = " The prompt is bold and slanted." if sampling.prompt else ""
    body = f"""<header>
<h1>{_line(title)}</h1>
<p class="lead">Written by the model, one character at a time. Each {colour}; point at one to see more.{prompt}</p>
</header>
<main>
{part}
<section aria-labelledby="how">
<h2 id="how">How it was made</h2>
{"".join(f"<p>{sentence}</p>" for sentence in _sentences(sampling, layers))}
<dl>{_facts(sampling)}</dl>
<pre tabindex="0">{escape(harmless(sampling.command))}</pre>
</section>
</main>"""
    return render(harmless(title), body)


def layer_texts(traced: Sequence[Traced], blocks: Sequence[int], *, num_experts: int) -> list[LayerText]:
    """The text as the Switch layer of each of these blocks routed it; empty for a dense model."""
    unread = Choice(NOBODY, 0.0, NOBODY, 0.0)
    layers = []
    for number, block in enumerate(blocks):
        of_layer = [unread if one.choices is None else one.choices[number] for one in traced]
        layers.append(
            LayerText(
                label=layer_name(block),
                num_experts=num_experts,
                expert=[choice.expert for choice in of_layer],
                gate=[choice.gate for choice in of_layer],
                second=[choice.second for choice in of_layer],
                second_probability=[choice.second_probability for choice in of_layer],
                number=[choice.number for choice in of_layer],
            )
        )
    return layers


def _sentences(sampling: Sampling, layers: Sequence[LayerText]) -> list[str]:
    drawn = "A character’s probability is the one with which it was drawn, in the pass before it was read itself."
    if sampling.temperature == 0.0:
        drawn = "The likeliest character was always taken; its probability is the model’s own, as at temperature 1."
    if not layers:
        return ["The model is dense: it has no experts.", drawn]
    routed = (
        "A character’s expert is the one that processed it when the model first read it, on the way to the next one: "
        "not the one that predicted it. Nothing is dropped when a model writes."
    )
    if {number for layer in layers for number in layer.number} - {1}:
        routed += " Of several experts it is the one with the largest gate; a character that no expert took has none."
    return [routed, drawn]


def _facts(sampling: Sampling) -> str:
    limits = [] if sampling.top_k is None else [f"{sampling.top_k} likeliest"]
    limits += [] if sampling.top_p is None else [f"the most probable that together have {100 * sampling.top_p:g}%"]
    prompt = repr(sampling.prompt) if sampling.prompt else "none: the text begins as after a line break"
    facts = {
        "model": str(sampling.checkpoint),
        "prompt": prompt,
        "length": f"{sampling.length:,} characters",
        "temperature": f"{sampling.temperature:g}",
        "drawn from": ", ".join(limits) or "all",
        "seed": str(sampling.seed),
    }
    return "".join(f"<div><dt>{name}</dt><dd>{_line(value)}</dd></div>" for name, value in facts.items())


def _line(text: str) -> str:
    return isolated(escape(harmless(text)), "<bdi>", "</bdi>")
