# Two commands: `make demo` runs the main job, `make test` the tests. Each sets up .venv first; all can be repeated.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-pacs fuzz lint docs render clean

demo: .venv/installed
	$(BIN)/cnnprimer demo --output demo

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m "not pacs"

# With a real PACS: Debian's orthanc, orthanc-dicomweb, dcmtk and dicom3tools; skipped where they are missing.
test-pacs: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m pacs tests/test_pacs.py

fuzz: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --mutants 20000 --seed 0

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python bundles/render.py --check

render: .venv/installed
	$(BIN)/python bundles/render.py

docs: .venv/installed
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv demo build dist *.egg-info
