PYTHON ?= python3
TASK ?= detection

.PHONY: help setup test demo
help:
	@echo 'make demo   set up, train Mask R-CNN on SimViT for minutes on generated images, show what it learnt;'
	@echo '            TASK=segmentation for Semantic FPN, TASK=classification for a classifier'
	@echo 'make test   set up, run the tests, the linter and the type checker'
	@echo 'make setup  set up .venv alone'

setup:
	@$(PYTHON) tools/setup_env.py

test: setup
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile
	.venv/bin/python -m ruff check .
	.venv/bin/python -m mypy

demo: setup
	.venv/bin/python tools/demo.py --task $(TASK)
