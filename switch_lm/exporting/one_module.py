"""One module out of our own files: the source of a part of this package, with all that it imports of ours."""

import ast
import re
from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# The routers' judges, which only tests and the certificate need.
LEFT_OUT = ("switch_lm.routers.loops",)
OF_THEM = re.compile(r"^    oracle = staticmethod\(.*\n", re.MULTILINE)
PLACE = re.compile(r'"switch_lm\.[\w.]+:(\w+)"')  # where the code of a family stands
OPERATION = '"switch_lm::'  # a name that torch knows once in a process: the package itself may be there, too


def one_module(roots: Sequence[str], about: str) -> str:
    """The source of the modules `roots` (switch_lm.X.Y) and of those that they import, each after what it imports."""
    parts: dict[str, str] = {}
    others: set[str] = set()
    for root in roots:
        _add(root, parts, others)
    text = "\n\n".join(parts.values())
    text = PLACE.sub(r'f"{__name__}:\1"', OF_THEM.sub("", text)).replace(OPERATION, '"switch_lm_export::')
    imports = sorted(others, key=lambda line: (not line.startswith("from __future__"), line))
    return "\n".join([f'"""{about}"""', "", *imports, "", "", text])


def _add(name: str, parts: dict[str, str], others: set[str]) -> None:
    """Adds a module's source without its imports to `parts`, those of ours first; `others`: the other imports."""
    if name in parts or name in LEFT_OUT:
        return
    source = _file(name).read_text(encoding="utf-8")
    lines = source.splitlines(keepends=True)
    module = ast.parse(source)
    for node in module.body:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
        if not (isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("switch_lm.")):
            others.add(ast.unparse(node))
            continue
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            _add(inner if _file(inner).is_file() else str(node.module), parts, others)
    assert isinstance(module.body[0], ast.Expr)  # the line that says what it holds
    body = "".join(lines[module.body[0].end_lineno :]).strip("\n")
    heading = f"# --- {name}: {ast.get_docstring(module)}".replace("\n", "\n# ").replace("# \n", "#\n")
    parts[name] = f"{heading}\n\n{body}\n"
    if name == "switch_lm.model.devices":  # which the others import as a whole
        others.add("from types import SimpleNamespace")
        parts[name] += "\n\ndevices = SimpleNamespace(**globals())\n"


def _file(name: str) -> Path:
    return PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py")
