# `make help` lists the targets. Every target that needs Python first makes .venv from requirements.txt.
PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# A PYTHONPATH or an active environment of the caller must not shadow what is pinned.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: repro test bench lint format preset study help

repro: $(STAMP)  ## run the pipeline, then print the table
	@python -c 'from ghm import params; from stages import run; run(params.load)'
	dvc repro
	@sed -n '/^## Result/,/^## Published/{/^|/p}' reports/ap_table.md
	@echo 'Details: reports/ap_table.md'

test: $(STAMP)  ## run the tests, two files at a time
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

bench: $(STAMP)  ## time the losses beside mmdet's, torchvision's and PyTorch's
	python -m benchmarks.losses

lint: $(STAMP)  ## check style and types, change nothing
	ruff check
	ruff format --check
	pyright

format: $(STAMP)  ## rewrite the code in the project's style
	ruff check --fix
	ruff format

preset: $(STAMP)  ## merge presets/$(NAME).yaml into params.yaml, e.g. make preset NAME=coco_r50_1x
	@python -m ghm.presets $(NAME)

study: $(STAMP)  ## train a study and write its table and figure, e.g. make study NAME=bins
	dvc repro data backbone
	python -m ghm.study $(NAME)

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##/\1\t/p' $(MAKEFILE_LIST)

$(STAMP): requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
	  "error: Python 3.10 to 3.12 is needed, got %d.%d: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv --clear $(VENV)
	python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
