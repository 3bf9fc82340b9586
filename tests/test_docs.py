"""README.md and docs/: commands work as a user would type them, links lead somewhere, no function is left out."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser  # Hydra has no public parser of its command line
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import RunMode

from switch_lm.config.overrides import composed
from switch_lm.config.rules import COMBINATIONS, show
from switch_lm.config.schema import KEYS
from switch_lm.train import PLAN

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:python -m switch_lm\.|python scripts/|make\b)")
PLUGINS = {"joblib": "hydra-joblib-launcher", "submitit": "hydra-submitit-launcher", "optuna": "hydra-optuna-sweeper"}
INSTALLED = {distribution.name.lower().replace("_", "-") for distribution in importlib.metadata.distributions()}


def commands(page: str) -> Iterator[str]:
    """The lines of its sh blocks, and the commands with arguments in its running text."""
    parts = re.split(r"^```(\w*)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    for text, language, block in zip(parts[::3], [*parts[1::3], ""], [*parts[2::3], ""], strict=True):
        inline = (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text))
        yield from (code for code in inline if COMMAND.match(code) and (code.startswith("make") or code.count(" ") > 2))
        if language == "sh":
            yield from (line for line in block.splitlines() if line.strip())


ALL = sorted({command for page in PAGES for command in commands(page.read_text(encoding="utf-8"))})


class Accepted(BaseException):
    """Raised by the patched `parse_args` in place of running the command."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options


def accept(command: str) -> None:
    """Reads a command as its program would, without running it; raises anything but Accepted if it is wrong."""
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        accept_make(words)
    elif words[1] == "-m" and words[2] == "switch_lm.train":
        accept_train(words[3:])
    elif words[:2] == ["python", "-m"]:
        accept_options(lambda: run_module(words[2]), words[2:])
    elif words[0] == "python" and words[1].startswith("scripts/"):
        accept_options(lambda: runpy.run_path(str(ROOT / words[1]), run_name="__main__"), words[1:])
    else:
        raise ValueError(f"{command}: no command of ours")


def accept_make(words: list[str]) -> None:
    """Each target exists, and the commands of ours that make would run are accepted too."""
    targets = [word for word in words[1:] if "=" not in word]
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert phony is not None and set(targets) <= set(phony[1].split()), f"no such target: {targets}"
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
    given = [word.removeprefix("ARGS=") for word in words if word.startswith("ARGS=")]
    for line in done.stdout.splitlines() if given else ():
        if match := re.match(r"\S*python (-m switch_lm\.|scripts/)", line):
            accept("python " + line[match.start(1) :])


def run_module(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"no module {name}"
    importlib.import_module(name if spec.submodule_search_locations is None else f"{name}.__main__").main()


def accept_options(run: Callable[[], object], words: list[str]) -> None:
    """Calls a program that ends where it has read its options; the configuration among its arguments is composed."""
    reader = argparse.ArgumentParser
    read, read_known = reader.parse_args, reader.parse_known_args

    def parse_args(*args: Any, **kwargs: Any) -> None:
        with pytest.MonkeyPatch.context() as inside:  # it calls the other one
            inside.setattr(reader, "parse_known_args", read_known)
            raise Accepted(read(*args, **kwargs))

    def parse_known_args(*args: Any, **kwargs: Any) -> None:
        raise Accepted(read_known(*args, **kwargs)[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "parse_args", parse_args)
        patch.setattr(reader, "parse_known_args", parse_known_args)
        patch.setattr(sys, "argv", words)
        patch.syspath_prepend(ROOT / "scripts")
        with pytest.raises(Accepted) as accepted:
            run()
    options = vars(accepted.value.options)
    recipes = [*options.get("experiments", ()), options.get("control")]
    accept_train([*options.get("overrides", ()), *(options.get("override") or ())])
    for recipe in {*recipes} - {None, "default"}:
        accept_train([f"experiment={recipe}"])


def accept_train(arguments: list[str]) -> None:
    """Every value of a sweep is composed in some job; a sweep needs -m, or an experiment that is one."""
    given = get_args_parser().parse_args([one for one in arguments if one != PLAN])
    lines = [line for line in given.overrides if not needs_missing_plugin(line, given.overrides)]
    overrides = OverridesParser.create().parse_overrides(lines)
    values = [values_of(override) for override in overrides]
    jobs = [[of_one[n % len(of_one)] for of_one in values] for n in range(max(map(len, values), default=1))]
    for job in jobs:
        composed(job)
    if len(jobs) > 1 and not given.multirun:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            mode = compose("train", jobs[0], return_hydra_config=True).hydra.mode
        assert mode == RunMode.MULTIRUN, f"{arguments}: a sweep needs -m"


def values_of(override: Override) -> list[str]:
    """The override once for each value of a sweep; of a continuous range at its start."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [str(override.input_line)]
    if override.is_discrete_sweep():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [f"{key}={override.value().start}"]  # type: ignore[union-attr]


def needs_missing_plugin(line: str, all_lines: list[str]) -> bool:
    """Whether this is a key of a launcher or sweeper that is not installed; our own keys are always checked."""
    missing = [name for name, plugin in PLUGINS.items() if plugin not in INSTALLED]
    chosen = any(re.match(rf"hydra/\w+={name}", other) for name in missing for other in all_lines)
    return chosen and re.match(r"hydra[./](launcher|sweeper)", line) is not None


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("command", ALL)
def test_a_command_in_the_docs_is_accepted(command: str) -> None:
    accept(command)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("python -m switch_lm.train model.num_expert=4", "model.num_expert"),
        ("python -m switch_lm.train model=swich", "swich"),
        ("python -m switch_lm.train seed=0,1", "a sweep needs -m"),
        ("python -m switch_lm.train -m seed=0,1 model=switch,dens", "dens"),
        ("python -m switch_lm.train --cgf job", "--cgf"),
        ("python -m switch_lm.train hydra/launcher=joblib hydra.launcher.n_jobs=2 sed=1", "sed: no such key"),
        ("python -m switch_lm.generate --lenght 5", "--lenght"),
        ("python -m switch_lm.evaluate --capacity-factor zero", "'zero'"),
        ("python -m switch_lm.check router.drop_order=rnd --steps 3", "router.drop_order=rnd"),
        ("python -m switch_lm.report --name a/b c", "'a/b'"),
        ("python -m switch_lm.report", "PATH"),
        ("python -m switch_lm.generation --run x", "switch_lm.generation"),
        ("python scripts/benchmark.py layers", "'layers'"),
        ("python scripts/benchmark.py loss no_such_recipe", "experiment=no_such_recipe"),
        ("python scripts/no_such_script.py", "no_such_script.py"),
        ("make trian", "trian"),
        ('make train ARGS="model.experts=3"', "model.experts"),
        ('make generate ARGS="--run"', "--run"),
        ("rm -r outputs", "no command of ours"),
    ],
)
def test_a_wrong_command_is_refused_by_what_is_wrong_in_it(
    command: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, Exception)) as error:
        accept(command)
    assert named in f"{error.value} {capsys.readouterr().err}"


def test_commands_are_collected_from_sh_blocks_and_running_text_alone() -> None:
    page = "Run `make x ARGS=1`, `python -m switch_lm.a` or `python -m switch_lm.b\n--c`.\n"
    page += "```sh\nmake y  # why\n\npython z\n```\n`data/`\n```python\nmake w\n```\n```\nmake v\n```\n"
    assert list(commands(page)) == ["make x ARGS=1", "python -m switch_lm.b --c", "make y  # why", "python z"]


def links(page: str) -> list[str]:
    """Targets inside this repository."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", page) if not re.match(r"\w+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page: Path) -> None:
    for link in links(page.read_text(encoding="utf-8")):
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), f"{page.name}: {link}"
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
        assert not heading or heading in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings], link


def test_links_are_those_within_the_repository() -> None:
    assert links("[a](b.md#c) ![d](e/f.png) [g](https://h.org/i) `j(k)`") == ["b.md#c", "e/f.png"]


def test_the_readme_fits_two_screens() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


FUNCTIONS = (ROOT / "docs" / "functions.md").read_text(encoding="utf-8")


def table_of_keys() -> str:
    """The keys in docs/functions.md; after a change of the schema, paste it from the failing test."""
    lines = ["| key | default | rule | meaning |", "| --- | --- | --- | --- |"]
    for key in KEYS.values():
        rules = [key.rule.text] if key.rule else []
        rules += [rule for name, _, rule, _ in COMBINATIONS if name == key.name]
        name = f"`{key.name}`" if key.changes_result else f"`{key.name}` \\*"
        default = show(key.default) if str(key.default).isprintable() else json.dumps(key.default)
        lines.append(f"| {name} | `{default}` | {'; '.join(rules) or '-'} | {key.meaning} |")
    return "\n".join(lines)


def test_functions_shows_the_schemas_keys() -> None:
    section = FUNCTIONS.split("## Configuration keys")[1].split("\n## ")[0]
    assert "\n".join(line for line in section.splitlines() if line.startswith("|")) == table_of_keys()


def test_functions_lists_every_make_target_and_command() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
    assert len(targets) > 10 and [target for target in targets if f"`make {target}`" not in FUNCTIONS] == []
    scripts = re.findall(r"^switch-lm-(\w+) =", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(scripts) > 5 and [name for name in scripts if f"`python -m switch_lm.{name}`" not in FUNCTIONS] == []
