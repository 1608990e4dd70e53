# make demo    trains a small network on generated scenes and shows accuracy, speed and pictures
# make test    lint, types, and the tests of this machine's software
# make stacks  the same code on every software stack it supports (noxfile.py); SELECT="-s ttsem" picks sessions
# make bench   benchmarks against the peers; writes benchmarks/results/<device>/
# make gpu     everything for one visit to a GPU machine
# make docs    the site, build/docs/index.html
# make wheels  what is published, in dist/: built, audited, run on every Python and torch at hand
# Each sets up its own virtual environment on first use. VENV=path puts it elsewhere, PYTHON=... picks the interpreter.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
GPU := -m benchmarks.harness.gpu $(if $(OUT),--out $(OUT)) $(if $(ONLY),--only $(ONLY)) $(if $(AGAIN),--again)
SOURCES := setup.py $(wildcard csrc/* csrc/*/* csrc/*/*/*)

.PHONY: demo test lint stacks bench gpu docs wheels clean

demo: $(VENV)/train.stamp
	$(PY) -m metricseg.demo --out demo_out

# a process per core, each with one thread
test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -n auto --dist worksteal

lint: $(VENV)/dev.stamp
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(shell git ls-files '*.cpp' '*.cu' '*.cuh' '*.h')

stacks: $(VENV)/dev.stamp
	$(VENV)/bin/nox $(SELECT)

# pytest benchmarks/ --benchmark-only -m quick: every family, forward and step, in under 90 s; writes nothing
bench: $(VENV)/dev.stamp
	mkdir -p .benchmarks
	$(PY) -m pytest benchmarks/ --benchmark-only --benchmark-sort=min \
	  --benchmark-columns=min,median,rounds --benchmark-json=.benchmarks/latest.json
	$(PY) -m benchmarks.harness.report

# a GPU machine's own Python serves if it has torch: nothing is installed then
# OUT=folder, ONLY="tests/focal bench", AGAIN=1: see benchmarks/harness/gpu.py
gpu:
	if $(PYTHON) -c "import torch" 2>/dev/null; then $(PYTHON) $(GPU); \
	else $(MAKE) $(VENV)/dev.stamp && $(PY) $(GPU); fi

# an extra of its own: sphinx, and what the pages and docstrings import
docs: $(VENV)/docs.stamp
	$(PY) -m sphinx -q -E -W --keep-going -n -c docs . build/docs
	@echo build/docs/index.html

wheels: $(VENV)/dev.stamp
	$(VENV)/bin/nox -s wheel wheel_on

clean:
	rm -rf build dist *.egg-info metricseg_kernels/_C*.so metricseg_kernels/_build.json

$(PY):
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip "setuptools>=77" wheel ninja

# torch first: the extension is then compiled against it, without a second copy of torch in an isolated build
$(VENV)/torch.stamp: | $(PY)
	$(PY) -m pip install torch torchvision
	touch $@

# everything that the extra named by the stamp needs, and the extension; again when a source changes
$(VENV)/%.stamp: $(SOURCES) pyproject.toml | $(VENV)/torch.stamp
	$(PY) -m pip install --no-build-isolation -e ".[$*]"
	$(PY) -m metricseg_kernels
	touch $@
