# Needs only make and a Python from 3.11 on with its venv module. See README.md.
#
#   make book    execute every chapter and build the site into _build/html
#   make test    the whole test suite but what needs a GPU
#   make serve   serve the built site on localhost
#   make lab     open the chapters in JupyterLab
#   make gpu     on a machine with a GPU: its tests, kernels beside their peers, the chapters at full size
#   make lint    formatting, lint, types, import rules
#   make clean   remove what was built (the virtual environment stays)
#
# Variables: PYTHON (which Python makes the environment), PIP_ARGS (further options for pip, for instance an
# index that holds the CPU build of torch), BOOK_ARGS, TEST_ARGS, LAB_ARGS and BENCH_ARGS (passed on), PORT
# (of make serve), JOBS (test workers).

VENV      ?= .venv
PYTHON    ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
               $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && exit; \
             done; echo python3)
PIP_ARGS  ?=
BOOK_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
LAB_ARGS  ?=
PORT      ?= 8000
JOBS      ?= $(shell getconf _NPROCESSORS_ONLN)

BIN := $(VENV)/bin
INSTALL = @$(PYTHON) lmlib/book/pipeline/install.py --venv $(VENV) --pip-args '$(PIP_ARGS)'

.DEFAULT_GOAL := help
.PHONY: help book test serve lab gpu lint clean install

help:
	@sed -n 's/^#   //p' Makefile

install:
	$(INSTALL)

book: install
	@$(BIN)/python -m lmlib.book.pipeline $(BOOK_ARGS)

# No test names a group: loadgroup then hands out one after the other, the quick ones first (conftest.py).
test: install
	@$(BIN)/python -m pytest -m "not gpu" -n $(JOBS) --dist loadgroup --no-loadscope-reorder $(TEST_ARGS)

serve: install
	@$(BIN)/python -m lmlib.book.pipeline.serve --port $(PORT)

lab: install
	@$(BIN)/jupyter lab chapters $(LAB_ARGS)

gpu:
	@$(PYTHON) lmlib/book/pipeline/install.py --venv $(VENV) --pip-args '$(PIP_ARGS)' --extras book,test,gpu
	@$(BIN)/python -c "import sys, torch; torch.cuda.is_available() or sys.exit('make gpu: torch sees no CUDA GPU')"
	@$(BIN)/python -m pytest -m gpu $(TEST_ARGS)
	@$(BIN)/python -m kernels.bench --results book/results $(BENCH_ARGS)
	@$(BIN)/python -m lmlib.book.pipeline --profile full $(BOOK_ARGS)

lint: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

clean:
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
