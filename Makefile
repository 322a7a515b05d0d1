# `make demo` and `make test` are where to begin. What needs an environment makes it first; the second time that takes no
# time. types: mypy; test-lowest: lowest versions; docs: the site; setup: .venv alone; doctor: what does not fit here;
# clean: removes environments and what was built.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test types test-lowest docs setup doctor clean

setup: $(READY)

$(READY): setup.py pyproject.toml tools/make_venv.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash tools/make_venv.sh

demo: $(READY)
	$(BIN)/dyn-d2 demo-few-shot $(ARGS)

# One thread a process: two processes share the two cores of the smallest machine that we support.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder $(ARGS)

types: $(READY)
	$(BIN)/mypy $(ARGS)

# The short tests with the lowest versions that pyproject.toml allows, in an environment of their own.
test-lowest:
	@PYTHON="$(PYTHON)" bash tools/test_lowest.sh $(ARGS)

# The pages as a site, in site/; its small environment has neither torch nor dyn_d2.
docs: .venv-docs/ready
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict $(ARGS)
	@echo "open site/index.html"

.venv-docs/ready: pyproject.toml
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check "mkdocs-material>=9.5,<10" "mkdocs<2" "mkdocstrings[python]>=0.26"
	@touch $@

doctor: $(READY)
	$(BIN)/dyn-d2 doctor

clean:
	rm -rf $(VENV) .venv-lowest .venv-docs site build *.egg-info
