"""Rows 16 and 25: whatever stands on the command line, it is a run or one message with key, value, rule and fix."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from switch_lm import train as command
from switch_lm.config.keys import ConfigError
from switch_lm.config.overrides import check
from switch_lm.config.paths import config_dir
from switch_lm.config.rules import MOVED, OLD_CHOICES, resolve
from switch_lm.config.schema import KEYS
from switch_lm.storage import choice

Refuse = Callable[..., str]

BAD = [
    ("model.num_layers=0", "model.num_layers=0: must be at least 1"),
    ("model.d_model=0", "model.d_model=0: must be at least 1"),
    ("model.num_heads=5", "model.num_heads=5: must divide model.d_model"),
    ("trainer.processes=3", "data.batch_size=32: must be a multiple of trainer.processes"),
    ("model.d_model=12", "model.position=rotary: rotary needs an even head width"),
    ("model.position=sinus", "must be one of rotary, learned, none"),
    ("model.activation=swish", "must be one of relu, relu_squared, gelu"),
    ("model.dropout=1.0", "model.dropout=1.0: must lie in 0 .. 1"),
    ("model.init_scale=0", "model.init_scale=0.0: must be a positive number"),
    ("model.capacity_factor=0", "model.capacity_factor=0.0: must be a positive number, or null"),
    ("model.capacity_factor=inf", "model.capacity_factor=inf"),
    ("model.num_layers=none", "model.num_layers=none: cannot be null; leave it out for its default"),
    ("model.num_experts=-2", "model.num_experts=-2"),
    ("model.num_experts=two", "model.num_experts"),
    ("model.num_experts=1.5", "model.num_experts"),
    ("model.num_experts=[1,2]", "model.num_experts"),
    ("router.top_k=9", "router.top_k=9: cannot be more than model.num_experts"),
    ("router.jitter=-0.1", "router.jitter=-0.1: must lie in 0 .. 1"),
    ("router.top_k=0", "router.top_k=0: must be at least 1"),
    ("router.top_k=2", "router.top_k=2: router=switch sends a token to one expert; router=topk router.top_k=2"),
    (
        "router=swich",
        "router=swich: no such choice; choose one of expert_choice, frozen, hash, sigmoid, switch,",
    ),
    ("router=base", "router=base: it only holds the keys that all of them have; choose one of expert_choice,"),
    ("optim=base", "optim=base: it only holds the keys that all of them have; choose one of adamw, muon"),
    ("router.name=topk", "router.name: choose it, with the options of its own, by router=NAME"),
    ("router.queue_order=choice", "router.queue_order: the chosen router has no such key; choose router=topk"),
    ("balance=even", "balance=even: no such choice; choose one of loss, none, quantile, sign"),
    ("balance.name=even", "balance.name=even: must be one of loss, sign, quantile, none"),
    ("balance.rate=0", "balance.rate=0.0: must be above 0 and at most 1"),
    ("optim.router_lr=0", "optim.router_lr=0.0: must be a positive number, or null for lr"),
    ("model.switch_layers=[3,1]", "model.switch_layers=[3, 1]: must name each block once, in order"),
    ("model.switch_layers=[1,1]", "model.switch_layers=[1, 1]: must name each block once, in order"),
    ("model.switch_layers=[4]", "model.switch_layers=[4]: blocks have the numbers 0 .. model.num_layers - 1"),
    ("model.switch_layers=[-1]", "model.switch_layers=[-1]: blocks have the numbers 0 .. model.num_layers - 1"),
    ("model.switch_layers=1", "model.switch_layers=1: must be a list, such as [1], or null"),
    ("model.switch_layers=[a]", "model.switch_layers[0]"),
    ("data.batch_size=0", "data.batch_size=0: must be at least 1"),
    ("optim.name=sgd", "optim.name: choose it, with the options of its own, by optim=NAME"),
    ("optim.lr=nan", "optim.lr=nan: must be a positive number"),
    ("optim.beta2=1", "optim.beta2=1.0: must lie in 0 .. 1"),
    ("optim.grad_clip=0", "optim.grad_clip=0.0: must be a positive number"),
    ("optim.averages=0.9", "optim.averages=0.9: must be a list, such as [0.9]"),
    *(
        (f"optim.averages=[{value}]", f"optim.averages=[{shown}]: must hold numbers between 0 and 1, such as [0.99,")
        for value, shown in {
            "1": "1",
            "0": "0",
            "nan": "nan",
            "tail_1": "'tail_1'",
            "a": "'a'",
            "0.9,0.9": "0.9, 0.9",
        }.items()
    ),
    ("trainer.max_steps=0", "trainer.max_steps=0: must be at least 1"),
    ("trainer.keep_best=0", "trainer.keep_best=0: must be at least 1"),
    ("trainer.precision=fp16", "must be one of auto, bf16, fp32"),
    ("trainer.max_time=20", "trainer.max_time=20: must be a time as hours:minutes:seconds"),
    ("trainer.max_time=20min", "trainer.max_time=20min: must be a time as hours:minutes:seconds, such as 00:20:00, or"),
    ("trainer.budget=5", "trainer.budget=5: must be a time as hours:minutes:seconds"),
    ("trainer.max_time=00:00:00", "trainer.max_time=00:00:00: must be"),
    ("alpha=-1", "alpha=-1.0: must lie in"),
    ("alpha=nan", "alpha=nan"),
    ("seed=-1", "seed=-1: must lie in 0 .. 9,223,372,036,854,775,807; for example seed=0"),
    ("seed=99999999999999999999", "seed"),
    ("resume=nowhere", "resume=nowhere: outputs/runs/nowhere is not a run; the newest there are: none"),
    ("model.capacity_facter=1", "model.capacity_facter: no such key; did you mean model.capacity_factor"),
    ("+model.capacity_facter=1", "model.capacity_facter: no such key; did you mean model.capacity_factor"),
    ("~alpha", "alpha"),
    ("max_steps=5", "max_steps: no such key; did you mean trainer.max_steps"),
    ("model=swich", "model=swich: no such choice; choose one of annotated, dense, dense_wide, moe_top2, switch"),
    ("experiment=nothing", "experiment=nothing: no such choice; choose one of"),
    ("modle=switch", "modle"),
    ("alpha", "alpha: cannot be read as key=value"),
    ("alpha=[1", "alpha=[1: cannot be read as key=value"),
    ("=1", "=1: there is no key; write key=value"),
    ("alpha=${nowhere}", "alpha"),
    ("alpha=${oc.env:NO_SUCH_VARIABLE}", "alpha"),
    ("model=null", "model"),
    ("trainer=5", "trainer"),
    ("seed=1,2", "seed=1,2"),
    ("data.num_workers=2", "data.num_workers: no such key any more; batches need no workers: leave it out"),
    ("+data.num_workers=2", "data.num_workers: no such key any more; batches need no workers: leave it out"),
    ("hydra.nowhere=1", "Could not override 'hydra.nowhere'"),
    ("hydra.launcher.setup=[a]", "To append to your config use +hydra.launcher.setup"),  # of this launcher
    ("logger=[csv,nope]", "logger=nope: no such choice; name one of the files of logger"),
    ("logger=nope", "logger=nope: no such choice; choose one of csv, tensorboard, wandb"),
    ("logger=base", "logger=base: it only holds the keys that all of them have; choose one of csv, tensorboard, wandb"),
    ("logger=[csv,base]", "logger=base: it only holds the keys that all of them have"),
    ("logger.boards={csv:{}}", "logger.boards: choose the boards with logger=NAME or logger=[A,B]"),
    ("logger.boards.nope.x=1", "logger.boards.nope: no such board; choose among"),
    ("logger.boards.wandb.projct=x", "no such key; did you mean logger.boards.wandb.project?"),
    ("logger.boards.wandb.project=x", "the board wandb is not chosen; add logger=wandb, or name it in logger=[...]"),
    ("--seed=0", "--seed=0: keys are written without dashes; write seed=0"),
    ("--run=x", "--run=x: to continue a run write resume=x"),
    ("seed", "seed: cannot be read as key=value; write key=value, without blanks"),
    ("seed=range(0,2)", "seed=range(0,2): several values make a sweep; add -m to the command"),
    ("+alpha=0.1", "+alpha=0.1: the key exists already; write alpha=0.1"),
]


def described(cfg: DictConfig, **_: Any) -> dict[str, Any]:
    """In place of training: all that is checked before it."""
    choice.choose(resolve(cfg))
    return {"val_loss": 1.0, "tokens_per_second": 1.0}


@pytest.fixture
def refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs the command in an empty folder, which it must leave empty, and returns what it says with its exit code 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "train", described)

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        with pytest.raises(SystemExit) as stop:
            command.main()
        output = capsys.readouterr().err
        assert stop.value.code == 2 and "Traceback" not in output, output
        assert list(tmp_path.iterdir()) == []
        return output

    return run


@pytest.mark.row(16)
@pytest.mark.parametrize(("override", "message"), BAD)
def test_a_bad_override_ends_with_code_2_one_message_and_nothing_written(
    override: str, message: str, refuse: Refuse
) -> None:
    first, *lines = refuse(override).splitlines()
    assert first == "The configuration cannot be used:"
    assert any(message in line for line in lines) and len(lines) <= 2, lines


REFUSED_TOGETHER = [
    ("router=topk router.top_k=9", "router.top_k=9: cannot be more than model.num_experts"),
    ("router=topk router.top_k=1 router.renormalize_gates=true", "over a single choice the gate would be a constant 1"),
    ("router=topk router.top_k=1 router.queue_order=choice", "there are no second choices at top_k=1"),
    ("router=topk router.overflow=reroute", "rerouting is defined for one choice per token"),
    ("router=topk router.renormalize_gates=true router.gate_scale=straight_through", "either renormalised or straight"),
    ("balance=sign router.selection=sample", "the bias of balance=sign moves the largest score"),
    ("router=switch router.queue_order=choice", "router.queue_order: router=switch has no such key; router=topk has"),
    ("optim=adamw optim.momentum=0.9", "optim.momentum: optim=adamw has no such key; optim=muon has"),
    (
        "experiment=small optim=adamw optim.matrix_lr=0.1",
        "optim.matrix_lr: optim=adamw has no such key; optim=muon has",
    ),
    ("experiment=annotated optim.momentum=0.9", "optim.momentum: the chosen optim has no such key; choose optim=muon"),
    ("variant=top2_2.0 router=switch", "router.top_k=2: router=switch sends a token to one expert"),
    ("router=hash router.top_k=2", "router.top_k=2: router=hash sends a token to one expert; router=topk"),
    ("router=frozen router.top_k=2", "router.top_k=2: router=frozen sends a token to one expert"),
    ("router=hash balance=sign", "balance.name=sign: router=hash has no selection that a bias could move"),
    ("router=hash router.jitter=0.1", "router.jitter=0.1: router=hash looks at no input; router.jitter=0.01"),
    ("router=uniform router.overflow=reroute", "router.overflow=reroute: router=uniform has no scores to order by"),
    (
        "router=expert_choice router.drop_order=random",
        "router.drop_order=random: has no effect with router=expert_choice",
    ),
    ("router=expert_choice model.capacity_factor=null", "model.capacity_factor=null: router=expert_choice gives each"),
    ("router=expert_choice router.top_k=2", "experts choose tokens: model.capacity_factor says how many"),
    ("router=threshold router.random_drop_rate=0.1", "has no effect with router=threshold"),
    ("router=threshold balance=quantile", "router=threshold has no selection that a bias could move"),
    ("router=sigmoid router.top_k=2 model.num_experts=2 balance=quantile", "at all experts there is nothing to"),
    ("router=switch router.warmup_steps=5", "router.warmup_steps: router=switch has no such key; router=threshold has"),
    ("-m router=switch,topk router.queue_order=choice", "router.queue_order: router=switch has no such key"),
]


@pytest.mark.row(16)
@pytest.mark.parametrize(("line", "message"), REFUSED_TOGETHER)
def test_overrides_that_do_not_go_together_end_with_code_2_and_one_message(
    line: str, message: str, refuse: Refuse
) -> None:
    first, *lines = refuse(*line.split()).splitlines()
    assert first == "The configuration cannot be used:"
    assert len(lines) == 1 and message in lines[0]


@pytest.mark.row(16)
@pytest.mark.parametrize("sign", ["", "+", "++"])
@pytest.mark.parametrize("key", MOVED)
def test_an_old_name_is_answered_with_the_new_one(key: str, sign: str, refuse: Refuse) -> None:
    assert refuse(f"{sign}{key}=1").splitlines()[1:] == [f"{key} is now {MOVED[key]}"]


@pytest.mark.row(16)
@pytest.mark.parametrize(("choice", "now"), OLD_CHOICES.items())
def test_a_preset_that_was_named_for_a_time_has_a_new_name(choice: str, now: str, refuse: Refuse) -> None:
    for line in ([choice, "trainer.max_steps=3"], ["-m", f"{choice},smoke"]):
        assert refuse(*line).splitlines()[1:] == [f"{choice}: {now}"]
    assert all(
        (config_dir() / "experiment" / f"{name}.yaml").is_file() for name in re.findall(r"experiment=(\w+)", now)
    )


def test_every_key_that_moved_to_a_router_is_one_of_it() -> None:
    new = [re.match(r"[\w.]+", name)[0] for name in MOVED.values()]  # type: ignore[index]
    assert len(new) == 12 and set(new) - {"balance"} <= KEYS.keys() and not MOVED.keys() & KEYS.keys()


@pytest.mark.row(16)
@pytest.mark.parametrize("flags", [[], ["-m"]], ids=["run", "sweep"])
def test_unknown_keys_are_reported_together(flags: list[str], refuse: Refuse) -> None:
    lines = refuse(*flags, "alpah=-1", "seed=1,2", "model.d_modl=1,2", "data.num_workers=1,2").splitlines()[1:]
    assert [line.partition(";")[0] for line in lines] == [
        "alpah: no such key",
        "model.d_modl: no such key",
        "data.num_workers: no such key any more",
    ]


@pytest.mark.row(16)
def test_values_out_of_range_are_reported_together(refuse: Refuse) -> None:
    assert len(refuse("alpha=-1", "seed=-1", "model.d_ff=0").splitlines()) == 1 + 3


@pytest.mark.row(16)
@pytest.mark.parametrize(
    "sweep", ["seed=range(0,1000000000)", "seed=range(0,10,0)", "seed=range(0,inf)", "seed=range(0,1000)"]
)
def test_a_sweep_without_end_is_refused_at_once(sweep: str, refuse: Refuse) -> None:
    others = ["alpha=range(0,1,0.01)"] if sweep.endswith("(0,1000)") else []
    output = refuse("-m", sweep, *others)
    assert sweep in output and ("narrow the range" in output or "give finite bounds" in output)


@pytest.mark.row(16)
def test_the_trials_of_a_search_are_its_jobs_whatever_it_chooses_from() -> None:
    check(["-m", "hydra.sweeper.n_trials=200", "trainer.max_steps=range(1,1000000)", "seed=range(0,100)"])
    with pytest.raises(ConfigError, match=r"n_trials=10001: this makes a sweep of 10,001 jobs"):
        check(["-m", "hydra.sweeper.n_trials=10001", "seed=0,1"])
    for none in ("0", "null"):
        with pytest.raises(ConfigError, match="20,000 jobs"):
            check(["-m", f"hydra.sweeper.n_trials={none}", "seed=range(0,20000)"])


@pytest.mark.row(16)
def test_hydras_own_keys_pass_with_lists_mappings_and_blanks_as_values(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        "+hydra.launcher.setup=['module load cuda','export A=b']",
        "+hydra.launcher.additional_parameters={mail-user: me@example.org}",
        "+hydra.launcher.mem_per_cpu=2 GB",
    ]
    monkeypatch.setattr(sys, "argv", ["train", "--cfg", "hydra", *overrides])
    command.main()
    launcher = OmegaConf.create(capsys.readouterr().out).hydra.launcher
    assert launcher.setup == ["module load cuda", "export A=b"] and launcher.mem_per_cpu == "2 GB"
    assert launcher.additional_parameters == {"mail-user": "me@example.org"}


@pytest.mark.row(25)
@pytest.mark.parametrize(
    "name", ["../../x", "/tmp/x", ".", "..", ".hidden", "-x", "a/b", "a\\\\b", "~root", "''", "'x y'", "x\n", "\u202ex"]
)
def test_a_name_that_leaves_its_folder_is_refused(name: str, refuse: Refuse) -> None:
    for key in ("name", "resume"):
        assert f"{key}=" in refuse(f"{key}={name}")
    assert "name=" in refuse("-m", "seed=1,2", f"name={name}")
