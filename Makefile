# `make help` lists the targets. Every target that needs Python first sees to it that .venv holds what is pinned.
PYTHON ?= python3
VENV := .venv
REQUIREMENTS := requirements.txt constraints.txt
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# A PYTHONPATH or an active environment of the caller must not shadow what is pinned.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: repro test bench lint format preset look fit study help environment

repro: environment  ## run the pipeline, then print the table; JOBS=1: one training run at a time
	@python -m ghm.check
	@python -m ghm.repro $(JOBS)
	@awk '/^\|/ {print; table = 1; next} table {exit}' reports/ap_table.md
	@echo 'Details: reports/ap_table.md'

test: environment  ## run the tests, two files at a time
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

bench: environment  ## time the losses beside mmdet's, torchvision's and PyTorch's
	python -m benchmarks.losses

lint: environment  ## check style and types, change nothing
	ruff check
	ruff format --check
	pyright

format: environment  ## rewrite the code in the project's style
	ruff check --fix
	ruff format

preset: environment  ## merge presets/$(NAME).yaml into params.yaml, e.g. make preset NAME=own_cpu DATA=/your/folder
	@python -m ghm.presets $(NAME) "$(DATA)" $(LAYOUT)

look: environment  ## read and check the data set, and show it in reports/data.md
	@dvc repro inspect

fit: environment  ## write anchors and an image scale that fit the data set into params.yaml, e.g. make fit LARGEST=320
	@python -m ghm.fit $(if $(LARGEST),--largest $(LARGEST))

study: environment  ## train a study and write its table and figure, e.g. make study NAME=bins
	dvc repro studies/dvc.yaml:$(NAME)

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*##/\1\t/p' $(MAKEFILE_LIST)

environment:
	@sh environment.sh $(VENV) $(PYTHON) "$(filter-out file,$(origin PYTHON))" $(REQUIREMENTS)
