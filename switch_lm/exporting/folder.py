"""The files of an export, by name."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save

from switch_lm.config.families import FAMILIES
from switch_lm.exporting.one_module import PACKAGE, one_module
from switch_lm.model.transformer import SwitchLM
from switch_lm.routers.options import CutoffOptions
from switch_lm.storage.checkpoint import EXPORT_FORMAT, MODEL_PREFIX, Header
from switch_lm.storage.files import as_json, read_json
from switch_lm.storage.run_folder import RESULT
from switch_lm.storage.runs import BEST, EXPORT_CONFIG, LAST, VOCABULARY, WEIGHTS, run_of

MODELING, TOKENIZATION = "modeling_switch_lm", "tokenization_switch_lm"

LOAD = """import switch_lm

print(switch_lm.load("DIR").generate("ROMEO:", length=200))  # DIR: this folder
"""
FOR_TRANSFORMERS = """
# or without switch_lm; trust_remote_code runs the two .py files of DIR: read them first
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("DIR", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("DIR", trust_remote_code=True)
ids = tokenizer("ROMEO:", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=200, do_sample=True)[0]))
"""


def refusal(header: Header, model: SwitchLM) -> str | None:
    """Why transformers cannot carry the model, and the fix; None if it can."""
    fix, router = "give --format safetensors", model.router_options
    if isinstance(router, CutoffOptions):
        return f"router={router.name}: transformers reads character by character, as token choice routes; {fix}"
    if not isinstance(FAMILIES["router"][router.name].code, str):
        return f"router={router.name} is a plugin's, whose code is not ours to copy; {fix}"
    if (factor := model.config.eval_capacity_factor) is not None:
        rule = "transformers generates by the pass that it evaluates by, and text must not depend on a batch"
        return f"model.eval_capacity_factor={factor}: {rule}; {fix}"
    return None


def files_of(
    model: SwitchLM, header: Header, path: Path, *, average: str | None, for_transformers: bool
) -> dict[str, bytes]:
    """The content of each file, from the checkpoint `path`. Weights have the names that they have there."""
    stored = {key: value for key, value in asdict(header).items() if key not in ("vocabulary", "start")}
    config: dict[str, Any] = {"format": EXPORT_FORMAT, "switch_lm": stored}
    vocabulary = {"characters": header.vocabulary, "start": header.start}
    weights = {f"{MODEL_PREFIX}{name}": x.clone().contiguous() for name, x in model.state_dict().items()}
    texts = {
        VOCABULARY: json.dumps(vocabulary),
        "README.md": card(model, header, path, average=average, for_transformers=for_transformers),
    }
    if for_transformers:
        classes = {"AutoConfig": "SwitchLMConfig", "AutoModelForCausalLM": "SwitchLMForCausalLM"}
        config |= {
            "model_type": "switch_lm",
            "architectures": [classes["AutoModelForCausalLM"]],
            "auto_map": {auto: f"{MODELING}.{name}" for auto, name in classes.items()},
            "dtype": "float32",
            "vocab_size": model.vocab_size,
            "hidden_size": model.config.d_model,
            "num_hidden_layers": model.config.num_layers,
            "tie_word_embeddings": model.config.tie_embeddings,
        }
        tokenizer = {"auto_map": {"AutoTokenizer": [f"{TOKENIZATION}.SwitchLMTokenizer", None]}}
        texts["tokenizer_config.json"] = as_json(tokenizer)
        router = str(FAMILIES["router"][model.router_options.name].code).partition(":")[0]
        about = "A Switch Transformer for transformers, in one module. Made of the sources of switch_lm."
        texts[f"{MODELING}.py"] = one_module([router, "switch_lm.exporting.hugging_face"], about)
        texts[f"{TOKENIZATION}.py"] = (PACKAGE / "exporting" / "tokenizer.py").read_text(encoding="utf-8")
    texts[EXPORT_CONFIG] = as_json(config)
    return {WEIGHTS: save(weights, {"format": "pt"})} | {name: text.encode() for name, text in texts.items()}


def card(model: SwitchLM, header: Header, path: Path, *, average: str | None, for_transformers: bool) -> str:
    """README.md: the text, figures, the certificate, and how to load it."""
    run = run_of(path)
    result, check = (read_json(run / name) or {} for name in (RESULT, "check.json"))
    checked = Path(str(check.get("checkpoint"))).name == path.name and check.get("average") == average
    if not checked or (run / "check.json").stat().st_mtime < path.stat().st_mtime:  # of other weights
        check = {}
    config, data = model.config, header.config["data"]
    verdicts = Counter(finding["verdict"] for finding in check.get("findings", ()))
    losses = {BEST: result.get("best_val_loss"), LAST: result.get("val_loss")}
    limit = config.eval_capacity_factor
    capacity = "nothing dropped" if limit is None else f"with a capacity factor of {limit}"
    value = result.get("val_loss_averaged", {}).get(average) if average else losses.get(path.name)
    loss = f"{value:.4f} nats per character, {capacity}" if value else "python -m switch_lm.evaluate measures it"
    found = ", ".join(f"{number} {verdict}" for verdict, number in verdicts.items())
    experts = f"{config.num_experts} in each of {config.num_switch_layers} of {config.num_layers} layers"
    factor = config.capacity_factor
    router = (
        f"{model.router_options.name}, trained {f'with capacity factor {factor}' if factor else 'without a capacity'}"
    )
    rows = {
        "text": f"{'a file' if data.get('path') else data.get('text')}, sha256 {header.corpus_sha256}",
        "validation loss": loss,
        "parameters": f"{sum(weight.numel() for weight in model.parameters()):,}",
        "experts": experts if model.switch_layers else "none: a dense model",
        "router": router if model.switch_layers else "none",
        "context": f"{config.context_length} characters of {model.vocab_size}",
        "certificate": found or "none: python -m switch_lm.check makes it",
    }
    lines = ["---", f"library_name: {'transformers' if for_transformers else 'switch_lm'}", "---", f"# {run.name}", ""]
    lines += ["A character-level language model, trained with switch_lm. It repeats what its text holds.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {what} |" for name, what in rows.items()), ""]
    return "\n".join([*lines, "```python", LOAD + FOR_TRANSFORMERS * for_transformers + "```", ""])
