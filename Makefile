# Every target works on a fresh Debian or Ubuntu with Python 3.11+, make and git; as root, missing system
# packages are installed too. Nothing is installed outside .venv otherwise.
PYTHON ?= python3
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: dist dist-windows manifests fuzz
.PHONY: help demo test test-windows check format bench golden docs docs-serve wire lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

.venv/run.stamp: requirements/run.txt pyproject.toml tools/prepare
	PYTHON=$(PYTHON) tools/prepare run

.venv/dev.stamp: requirements/dev.txt .venv/run.stamp
	tools/prepare dev

.venv/docs.stamp: requirements/docs.txt .venv/run.stamp
	tools/prepare docs

.venv/fuzz.stamp: requirements/fuzz.txt .venv/dev.stamp
	tools/prepare fuzz

demo: .venv/run.stamp ## an emulated Windows node, from empty to healed (no root, no cluster, no Windows)
	$(BIN)/hansa demo $(ARGS)

test: .venv/dev.stamp ## all tests; ARGS go to pytest
	$(BIN)/pytest -n auto $(ARGS)

test-windows: .venv/dev.stamp ## the Windows code with a Windows Python under Wine; ARGS go to pytest
	$(BIN)/python tools/test-windows $(ARGS)

check: .venv/dev.stamp ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/dev.stamp ## rewrite the sources in house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/dev.stamp ## benchmarks: one JSON line per result; ARGS go to benchmarks/run.py
	$(BIN)/python benchmarks/run.py $(ARGS)

golden: .venv/dev.stamp ## rewrite golden files and show what changed
	$(BIN)/pytest -q -n 0 --golden tests/unit tests/flows $(ARGS)
	git diff --stat tests/golden

docs: .venv/docs.stamp ## build the documentation into site/
	$(BIN)/mkdocs build --strict

docs-serve: .venv/docs.stamp ## show the documentation at http://127.0.0.1:8000
	$(BIN)/mkdocs serve -a 127.0.0.1:8000

wire: .venv/dev.stamp ## write the gRPC messages anew from their .proto files
	$(BIN)/python tools/make-wire

dist: .venv/dev.stamp ## wheel and source archive, into dist/
	$(BIN)/python tools/make_dist.py

dist-windows: .venv/dev.stamp ## a folder for Windows nodes, as a zip; EMBED=python-3.X.Y-embed-amd64.zip puts Python in
	$(BIN)/python tools/make_dist.py --windows $(EMBED)

manifests: .venv/dev.stamp ## write deploy/kubernetes/ out of the chart, and the dashboard out of its panels
	$(BIN)/python tools/render_chart.py
	$(BIN)/python tools/make_dashboard.py

fuzz: .venv/fuzz.stamp ## random bytes into every decoder; ARGS="--seconds 60 --only NAME"
	$(BIN)/python fuzz/run.py $(ARGS)

lock: ## resolve the dependencies anew (needs uv)
	uv pip compile -q --universal --upgrade --generate-hashes pyproject.toml -o requirements/run.txt
	uv pip compile -q --universal --upgrade --generate-hashes -c requirements/run.txt --extra kpng pyproject.toml -o requirements/kpng.txt
	uv pip compile -q --universal --upgrade --generate-hashes -c requirements/kpng.txt requirements/dev.in -o requirements/dev.txt
	uv pip compile -q --universal --upgrade --generate-hashes -c requirements/run.txt requirements/docs.in -o requirements/docs.txt
	uv pip compile -q --universal --upgrade --generate-hashes requirements/fuzz.in -o requirements/fuzz.txt

clean: ## remove what the targets made
	rm -rf .venv site dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
