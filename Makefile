# Everything starts here; .venv is made when it is missing, and made up to date when a version list changed.
#
#   make run [DATA=figures|lsp:/path] [PRESET=quick|full] [BITS=8] [SEED=0]
#
# Needs GNU make and Python 3.11 or newer. Without make: the README's lines, then the commands below.

DATA ?= figures
PRESET ?= quick
BITS ?= 8
SEED ?= 0
LAB_OPTIONS ?=

# Notebook kernels and workers share the cores; their threads soon sleep while they wait for each other (see qatlib/wording.py).
export OMP_NUM_THREADS ?= 2
export GOMP_SPINCOUNT ?= 10000
export PYDEVD_DISABLE_FILE_VALIDATION ?= 1

PYTHON := .venv/bin/python
READY := .venv/ready
NEW_ENOUGH := import sys, venv; sys.exit(sys.version_info < (3, 11))

.PHONY: help run test processors lab book notebooks pretrained reference bench clean

help:
	@echo "make run        train the tiny pose network in three versions, export int8, execute the notebooks into runs/"
	@echo "                options: DATA=figures|lsp:/path  PRESET=quick|full  BITS=8|4|2|1  SEED=0"
	@echo "make test       ruff, then all tests and every notebook"
	@echo "make processors the exact tests again, with float sums in the orders of other processors"
	@echo "make lab        JupyterLab on notebooks/ (LAB_OPTIONS=--no-browser where there is no screen)"
	@echo "make book       the lessons as pages for a browser, in book/ (begin at book/index.html)"
	@echo "make notebooks  write the notebooks again, with outputs"
	@echo "make pretrained train the committed float network again"
	@echo "make reference  measure the numbers that the README and the lessons quote"
	@echo "make bench      measure speed"
	@echo "make clean      remove caches and build products; .venv and runs/ stay"

run: $(READY)
	$(PYTHON) -m qatcourse.run --data "$(DATA)" --preset "$(PRESET)" --weight-bits "$(BITS)" --seed "$(SEED)"

test: $(READY)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m pytest -q --nbval-lax --nbval-current-env --nbval-cell-timeout=1800 tests qatlib notebooks

processors: $(READY)
	$(PYTHON) tests/processors.py

lab: $(READY)
	$(PYTHON) -m jupyterlab --ip=127.0.0.1 --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate \
	  --LabApp.news_url=None $(LAB_OPTIONS) notebooks

book: $(READY)
	$(PYTHON) -m qatcourse.book

notebooks: $(READY)
	$(PYTHON) -m qatcourse.keeper.notebooks

pretrained: $(READY)
	$(PYTHON) -m qatcourse.train_pose_tiny --preset full --out runs/pretrained
	cp runs/pretrained/float.pth data/pose_tiny_fp32.pth

reference: $(READY)
	$(PYTHON) -m qatcourse.keeper.reference
	$(PYTHON) -m qatcourse.keeper.readme

bench: $(READY)
	$(PYTHON) tests/speed/bench.py

clean:
	rm -rf book data/cache build dist .pytest_cache .ruff_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +

# The file .venv/ready is written last, so an interrupted installation starts again.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null && $(PYTHON) -m pip --version >/dev/null 2>&1 || { \
	  for python in python3 python3.13 python3.12 python3.11 none; do \
	    $$python -c '$(NEW_ENOUGH)' 2>/dev/null && break; \
	  done; \
	  if [ $$python = none ]; then \
	    echo "Python 3.11 or newer is needed, and python3, python3.13, python3.12, python3.11 are missing or older: install one" >&2; \
	    exit 1; \
	  fi; \
	  echo "making .venv with $$($$python --version)"; \
	  $$python -m venv --clear .venv; \
	}
	$(PYTHON) -m pip install --disable-pip-version-check -c constraints.txt -e '.[course,cluster,test]'
	@touch $@
