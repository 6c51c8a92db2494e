# make demo: set up and run the embedded default. make test: set up and run the tests. make check: format, lint, types.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The tests of a file share what they prepare, so files are what is shared out among processes.
SHARED := --numprocesses logical --maxprocesses 8 --dist loadfile

# Nothing but what the locks name, by hash; no build fetches tools of its own.
INSTALL := $(BIN)/pip install --quiet --no-deps --no-build-isolation

.PHONY: setup lock audit demo test test-slow test-slurm test-slurm-slow test-vllm check format clean

setup: $(VENV)/.done

# torch is PyPI's, with CUDA's libraries on Linux, unless an index or a folder of yours offers the one for CPUs.
$(VENV)/.done: requirements.lock requirements-cpu.lock requirements-cuda.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	sed -n '/^setuptools==/,/[^\\]$$/p' requirements.lock | $(INSTALL) --require-hashes -r /dev/stdin
	$(INSTALL) --require-hashes -r requirements.lock
	$(INSTALL) --require-hashes -r requirements-cpu.lock 2> /dev/null || $(INSTALL) --require-hashes -r requirements-cuda.lock
	$(INSTALL) --editable .
	$(BIN)/pip check
	touch $@

$(VENV)/.tests: $(VENV)/.done requirements-tests.lock
	$(INSTALL) --require-hashes -r requirements-tests.lock
	$(BIN)/pip check
	touch $@

# After a change of pyproject.toml; newer versions: make lock OPTIONS=--upgrade
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet uv==0.13.9
	PATH=.venv-lock/bin:$$PATH .venv-lock/bin/python .ci/lock.py $(OPTIONS)

audit: $(VENV)/.tests
	python .ci/audit.py

# Where a job failed there is a report of the rest, and the demo has failed all the same.
demo: setup
	@python -m perfmis warm snakemake --profile demo; status=$$?; \
	test $$status = 0 || test -f results/demo/logs/missing.json || exit $$status; \
	$(MAKE) --no-print-directory results/demo/report.html; exit $$((status + $$?))

results/demo/report.html: results/demo/report/story.rst $(wildcard results/demo/figures/*.svg results/demo/tables/*.csv)
	snakemake --profile demo --report $@
	@echo "the report: $@"

test: $(VENV)/.tests
	python -m pytest $(SHARED)

test-slow: $(VENV)/.tests
	python -m pytest $(SHARED) -m 'slow and not slurm and not vllm'

test-slurm: $(VENV)/.tests
	python -m pytest -m 'slurm and not slow'

test-slurm-slow: $(VENV)/.tests
	python -m pytest -m 'slurm and slow'

# vLLM's CPU build, in an environment that sees the project's own: trl changes its ways where it finds vLLM.
.venv-vllm/.done: tests/vllm-requirements.txt $(VENV)/.done
	$(BIN)/python -m venv --clear --without-pip .venv-vllm
	echo "import site; site.addsitedir('$$(echo $(CURDIR)/$(VENV)/lib/python*/site-packages)')" > $$(echo .venv-vllm/lib/python*/site-packages)/project.pth
	$(BIN)/pip --python .venv-vllm/bin/python install --quiet --no-deps -r $<
	touch $@

test-vllm: setup .venv-vllm/.done
	.venv-vllm/bin/python -m pytest tests/test_vllm.py -m 'vllm and not slow'

check: setup
	ruff format --check .
	ruff check .
	mypy
	snakefmt --check Snakefile workflow
	python -m perfmis default_config --check
	snakemake --lint

format: setup
	ruff format .
	ruff check --fix .
	snakefmt Snakefile workflow
	python -m perfmis default_config

clean:
	rm -rf $(VENV) .snakemake results/demo
