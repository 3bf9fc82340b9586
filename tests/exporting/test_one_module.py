"""The module that an export holds: our sources, each after what it needs, none of them in another's way."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from switch_lm.config.families import FAMILIES
from switch_lm.exporting.one_module import one_module
from switch_lm.routers.options import CutoffOptions

TOKEN_CHOICE = [name for name, one in FAMILIES["router"].items() if not issubclass(one.options, CutoffOptions)]


@pytest.mark.parametrize("router", TOKEN_CHOICE)
def test_it_imports_nothing_of_ours_and_defines_each_name_once_before_a_class_needs_it(router: str) -> None:
    place, _, code = str(FAMILIES["router"][router].code).partition(":")
    module = ast.parse(one_module([place, "switch_lm.exporting.hugging_face"], "About."))
    imported = [node for node in ast.walk(module) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [ast.unparse(node) for node in imported if "switch_lm" in ast.unparse(node)]
    classes = [node for node in module.body if isinstance(node, ast.ClassDef)]
    functions = [node.name for node in module.body if isinstance(node, ast.FunctionDef) and node.name != "_"]
    values = [place for node in module.body if isinstance(node, ast.Assign) for place in node.targets]
    names = Counter([node.name for node in classes] + functions + [n.id for n in values if isinstance(n, ast.Name)])
    assert [name for name, count in names.items() if count > 1] == []
    order = [node.name for node in classes]
    assert code in order and order[-1] == "SwitchLMForCausalLM"
    for number, node in enumerate(classes):
        assert not {base.id for base in node.bases if isinstance(base, ast.Name)} & set(order[number:])
