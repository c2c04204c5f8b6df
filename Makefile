# `make help` lists every target. Variables with ?= can be set, as in `make train DATASET=ml1m`.

DATASET ?= synthetic
MODEL   ?=
RAW     ?=
EPOCHS  ?=
SEEDS   ?=
MODELS  ?=
ALPHAS  ?=
BETAS   ?=
STAGES  ?=
ARGS    ?=
PREP_ARGS ?=
YAMBDA  ?= 5 50
RUN     ?=
OUT     ?=
PORT    ?=
DIST    ?= dist
PIP_ARGS ?=

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN  := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup spark-prep py-files train reproduce tune serve export mlflow-ui test test-slow soak bench bench-prep bench-recommend bench-start bench-peers settings-page lint check format lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: $(STAMP)  ## create .venv and install everything with pinned versions (PYTHON=..., PIP_ARGS=...)

$(STAMP): pyproject.toml constraints.txt
	@case "$$(uname -s)-$$(uname -m)" in Linux-x86_64|Linux-aarch64|Darwin-arm64) ;; \
	*) echo "error: $$(uname -s) on $$(uname -m) is not supported; use Linux (x86_64, aarch64) or macOS on Apple silicon" >&2; exit 2;; esac
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || { \
	echo "error: no Python 3.11 to 3.13$(if $(PYTHON), at $(PYTHON)); install one, or name another one: make setup PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	echo "error: $(PYTHON) lacks the venv module; install it (Debian: python3-venv), or set PYTHON=/path/to/another" >&2; exit 2; }
	@echo "installing into $(VENV) (takes minutes on the first run)"
	@"$(PYTHON)" -m venv $(VENV)
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[dev]'
	@touch $(STAMP)

spark-prep: $(STAMP)  ## prepare the raw data set into data/prepared/DATASET (DATASET=ml1m RAW=dir PREP_ARGS="...")
	@$(BIN)/python -m spark_jobs --dataset "$(DATASET)" $(if $(RAW),--raw "$(RAW)") $(PREP_ARGS)

py-files: $(STAMP)  ## write the files for spark-submit to dist/: prepare.py, and pnfrec_dist.zip for --py-files
	@$(BIN)/python -m spark_jobs.package "$(DIST)"

train: spark-prep  ## prepare DATASET, train MODEL (default: pnfrec_plus), evaluate, log to MLflow (EPOCHS=..., ARGS="...")
	@$(BIN)/python -m pnfrec_dist.train --dataset "$(DATASET)" $(if $(MODEL),--model "$(MODEL)") $(if $(EPOCHS),--epochs $(EPOCHS)) $(ARGS)

reproduce: spark-prep  ## train the paper's six models, or MODELS, with all seeds, and compare them in a report (SEEDS=5 MODELS="..." EPOCHS=... ALPHAS=grid BETAS=grid)
	@$(BIN)/python -m pnfrec_dist.reproduce --dataset "$(DATASET)" $(if $(SEEDS),--seeds $(SEEDS)) $(if $(MODELS),--models $(MODELS)) \
	$(if $(ALPHAS),--alphas $(ALPHAS)) $(if $(BETAS),--betas $(BETAS)) $(if $(EPOCHS),--epochs $(EPOCHS)) $(ARGS)

tune: spark-prep  ## search training settings in the paper's stages, and write best.yaml (STAGES="encoder alpha beta" EPOCHS=... ARGS="...")
	@$(BIN)/python -m tune --dataset "$(DATASET)" $(if $(STAGES),--stages $(STAGES)) $(if $(EPOCHS),--epochs $(EPOCHS)) $(ARGS)

serve: $(STAMP)  ## serve a trained model over HTTP, on this machine only (RUN=<run directory, MLflow run id, models:/...> PORT=5001)
	@$(if $(RUN),,$(error name the model: RUN=runs/<run>, an MLflow run id, or models:/<name>/<version>))exec $(BIN)/python -m pnfrec_dist.serve --run "$(RUN)" $(if $(PORT),--port "$(PORT)")

export: $(STAMP)  ## write a trained model as item vectors and a torch.export encoder (RUN as in serve, OUT=exported)
	@$(if $(RUN),,$(error name the model: RUN=runs/<run>, an MLflow run id, or models:/<name>/<version>))$(BIN)/python -m pnfrec_dist.export --run "$(RUN)" --out "$(or $(OUT),exported)" $(ARGS)

mlflow-ui: $(STAMP)  ## browse the runs on this machine (PORT=5000)
	@exec $(BIN)/python -m pnfrec_dist.tracking ui $(if $(PORT),--port "$(PORT)")

test: $(STAMP)  ## run the tests except the slow ones (about 8 minutes)
	@$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test-slow: $(STAMP)  ## run the slow tests (an hour): killed processes, a huge history, a Spark cluster, a browser, 200 leak cases
	@$(BIN)/python -m pytest -m slow

soak: $(STAMP)  ## interrupt training in many ways, and print the results (70 minutes)
	@$(BIN)/python -m pytest -m soak

bench: $(STAMP)  ## compare losses, steps and ranking with plain PyTorch, and write docs/benchmarks.md (half an hour)
	@$(BIN)/python -m benchmarks.core $(ARGS)

bench-start: $(STAMP)  ## time the start of commands and of Ray alone, and write docs/start-up.md (10 minutes)
	@$(BIN)/python -m benchmarks.start $(ARGS)

bench-prep: $(STAMP)  ## compare the preparation of 1, 5 and 20 M rows with pandas and a plain Spark job, and of logs like Yambda's (an hour; YAMBDA="5 50" million rows)
	@$(BIN)/python -m benchmarks.prep $(ARGS)
	@$(if $(YAMBDA),$(BIN)/python -m benchmarks.prep_yambda --millions $(YAMBDA))

bench-recommend: $(STAMP)  ## time lists for all users and single requests, compare with plain PyTorch, test kills (10 minutes)
	@$(BIN)/python -m benchmarks.recommend $(ARGS)
	@$(BIN)/python -m benchmarks.serve

bench-peers: $(STAMP)  ## train RecTools' and RePlay's models beside this library's, in environments of their own (hours; ARGS="--parts speed" for less)
	@$(BIN)/python -m benchmarks.peers $(ARGS)

settings-page: $(STAMP)  ## write docs/settings.md from the code
	@$(BIN)/python docs/settings_page.py

lint: $(STAMP)  ## check format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/pyright

check: lint  ## check format, lint and types, and run the fast tests
	@$(BIN)/python -m pytest -m "not integration and not slow and not soak" --durations=3

format: $(STAMP)  ## format the code and fix what lint can fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: $(STAMP)  ## write constraints.txt from the packages in .venv
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --all --exclude-editable 2>/dev/null | grep -v '^pip==' | sed 's/+cpu$$//'; } > constraints.new
	@mv constraints.new constraints.txt

clean:  ## remove prepared data, runs and the MLflow database (not data/raw, not .venv)
	rm -rf data/prepared runs mlflow.db mlartifacts
