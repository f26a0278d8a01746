PYTHON ?= python3
TASK ?= detection
STACK ?= upstream
TORCH ?=
OPS ?=
VENV := .venv$(if $(filter-out upstream,$(STACK)),-$(STACK))$(if $(TORCH),-torch$(TORCH))$(if $(OPS),-$(OPS))

.PHONY: help setup test test-all docs demo
help:
	@echo 'make demo   set up, train Mask R-CNN on SimViT for minutes on generated images, show what it learnt;'
	@echo '            TASK=segmentation for Semantic FPN, TASK=classification for a classifier'
	@echo 'make test   set up, run the linter, the type checker and the tests that each change must pass: twelve minutes'
	@echo 'make test-all  make test, then the tests that take long: up to an hour'
	@echo 'make docs   set up, run all commands of the pages and the tutorials, build the site into site/'
	@echo 'make setup  set up .venv alone'
	@echo 'STACK=onedl in each: with the maintained forks of the OpenMMLab packages, in .venv-onedl'
	@echo 'TORCH=2.6.0 in each: with another version of PyTorch, in .venv-torch2.6.0'
	@echo 'OPS=compiled in each: with the operators that mmcv compiles, in .venv-compiled; takes a compiler and minutes'

setup:
	@$(PYTHON) tools/setup_env.py --venv $(VENV) --stack $(STACK) $(if $(TORCH),--torch $(TORCH)) $(if $(OPS),--ops $(OPS))

test: setup
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m mypy
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal

test-all: test
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal -m full

docs: setup
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal -m pages
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/python -m mkdocs build --strict

demo: setup
	$(VENV)/bin/python tools/demo.py --task $(TASK)
