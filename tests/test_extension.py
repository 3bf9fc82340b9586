"""The test of the design: a router, a board and an optimizer of a user, each one file and one YAML, in every command.

They are those of docs/design.md, as they stand there. One process runs all commands, since importing torch is slow.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import switch_lm

ROOT = Path(switch_lm.__file__).parents[1]
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
MODULES = ("ranked", "notes", "lion")
SMALL = (
    "experiment=smoke data.path=text.txt model.d_model=16 model.num_heads=2 model.d_ff=32 model.context_length=16 "
    "data.batch_size=8 trainer.max_steps=6 trainer.val_every=3 trainer.checkpoint_every=3 trainer.compile=false "
    "trainer.precision=fp32 trainer.threads=1 logger.sample_length=0 logger.log_every=1 logger.progress=none"
)
OURS = "router=ranked optim=lion optim.router_lr=0.01"
COMMANDS = {
    "train": f"train {SMALL} {OURS} logger=[tensorboard,notes] name=one",
    "stopped": f"train {SMALL} {OURS} logger=notes name=two",
    "resumed": f"train {SMALL} {OURS} logger=notes resume=two",
    "evaluate": "evaluate --run one --capacity-factor 0.5 none",
    "check": "check --run one",
    "fault": f"check {SMALL} {OURS} router=ranked_with_a_fault router.rank=2 --steps 2 --json fault.json",
    "inspect": "inspect --run one --out inspected",
    "generate": "generate --run one --prompt a --length 20 --html page.html",
    "sweep": f"train -m {SMALL} trainer.max_steps=3 router=switch,ranked optim=lion router.jitter=0.0 name=four",
    "wrong rank": f"train {SMALL} router=ranked router.rank=9",
    "report": "report outputs/sweeps/four --out reported",
}
DRIVER = """
import json, os, runpy, shlex, signal, sys
from switch_lm.training.module import SwitchModule

step = SwitchModule.optimizer_step
def step_and_stop(self, *args, **kwargs):
    step(self, *args, **kwargs)
    if self.config.name == "two" and self.config.resume is None and self.global_step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
SwitchModule.optimizer_step = step_and_stop

codes = {}
for name, line in json.loads(sys.argv[1]).items():
    command, *arguments = shlex.split(line)
    sys.argv = [f"switch_lm.{command}", *arguments]
    print(f"=== {name}", flush=True)
    try:
        runpy.run_module(f"switch_lm.{command}", run_name="__main__", alter_sys=True)
        codes[name] = 0
    except SystemExit as error:
        codes[name] = error.code
    json.dump(codes, open("codes.json", "w"))
"""


def files_of_the_page() -> dict[str, str]:
    """What docs/design.md shows of a user's own files, by the name in their first line."""
    python = re.findall(r'```python\n(?=""")"""(\w+\.py):(.*?)```', PAGE, re.DOTALL)
    yaml = re.findall(r"```yaml\n# (configs/\S+)\n(.*?)```", PAGE, re.DOTALL)
    return {name: f'"""{text}' for name, text in python} | dict(yaml)


FAULTY = "defaults:\n  - ranked\nname: ranked_with_a_fault\n"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int], Mapping[str, str]]:
    """The folder, the exit code of every command and what it printed."""
    place = tmp_path_factory.mktemp("extension")
    plugins = place / "plugins"
    for name, text in (files_of_the_page() | {"configs/router/ranked_with_a_fault.yaml": FAULTY}).items():
        (plugins / name).parent.mkdir(parents=True, exist_ok=True)
        (plugins / name).write_text(text)
    (place / "text.txt").write_text("".join(chr(97 + (i * i + i // 7) % 23) + " ." * (i % 5 == 0) for i in range(6000)))
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{plugins}",
        "SWITCH_LM_PLUGINS": ",".join(MODULES),
        "PYTHONWARNINGS": "ignore",
    }
    result = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(COMMANDS)], cwd=place, env=environment, capture_output=True, text=True
    )
    assert (place / "codes.json").exists(), result.stderr
    printed = re.split(r"^=== (.*)\n", result.stdout, flags=re.MULTILINE)[1:]
    by_command = dict(zip(printed[::2], printed[1::2], strict=True))
    return place, json.loads((place / "codes.json").read_text()), by_command | {"errors": result.stderr}


def test_the_pages_router_has_fewer_than_sixty_lines_and_imports_public_names_alone() -> None:
    router = files_of_the_page()["ranked.py"]
    assert len(router.splitlines()) < 60
    assert re.findall(r"switch_lm[\w.]*", router) == ["switch_lm"]


@pytest.mark.slow
def test_every_command_takes_them(ran: tuple[Path, dict[str, int], Mapping[str, str]]) -> None:
    _, codes, printed = ran
    expected = dict.fromkeys(COMMANDS, 0) | {"stopped": 143, "fault": 1, "wrong rank": 2}
    assert codes == expected, printed["errors"][-3000:]
    assert "router.rank=9: must lie in 1 .. model.num_experts; for example router.rank=1" in printed["errors"]


def test_a_run_that_goes_on_ends_at_the_same_bits(ran: tuple[Path, dict[str, int], Mapping[str, str]]) -> None:
    place, _, _ = ran
    runs = [place / "outputs" / "runs" / name for name in ("one", "two")]
    one, two = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in runs)
    assert one["global_step"] == two["global_step"] == 6
    assert one["state_dict"].keys() == two["state_dict"].keys()
    assert all(torch.equal(one["state_dict"][name], two["state_dict"][name]) for name in one["state_dict"])
    notes = [(run / "notes.txt").read_text() for run in runs]
    assert notes[0] == notes[1] and re.findall(r"step (\d)", notes[0]) == ["3", "6"]


def test_its_own_oracle_passes_it_and_finds_the_planted_fault(
    ran: tuple[Path, dict[str, int], Mapping[str, str]],
) -> None:
    place, _, _ = ran
    verdicts = {}
    for name, file in (("good", "outputs/runs/one/check.json"), ("bad", "fault.json")):
        verdicts[name] = {f["check"]: f["verdict"] for f in json.loads((place / file).read_text())["findings"]}
    assert set(verdicts["good"].values()) <= {"PASS", "LEAKS"} and verdicts["good"]["selection"] == "PASS"
    assert verdicts["bad"]["selection"] == "FAIL"


def test_the_sweep_and_the_report_name_the_router(ran: tuple[Path, dict[str, int], Mapping[str, str]]) -> None:
    place, _, _ = ran
    jobs = [json.loads(path.read_text()) for path in place.glob("outputs/sweeps/four/*/result.json")]
    assert len(jobs) == 2
    assert "ranked" in (place / "reported" / "report.md").read_text()
