"""The templates of all pages: every text is escaped, and a name that has no value is an error."""

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from switch_lm.pages.characters import harmless, isolated
from switch_lm.pages.document import number, numeric_columns, pieces

HERE = Path(__file__).resolve().parent
TEMPLATES = Environment(
    loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
TEMPLATES.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
TEMPLATES.filters |= {
    "harmless": harmless,
    "isolated": lambda text: Markup(isolated(escape(text), "<bdi>", "</bdi>")),
    "kind": lambda part: type(part).__name__,
    "number": number,
    "numeric_columns": numeric_columns,
    "pieces": pieces,
    "words": lambda name: re.split(r"(?<=[_/=])(?=\w)", name),  # a long name may be broken between these
}
