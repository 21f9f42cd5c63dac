# Two commands: `make book` and `make test`. Both set up what they need; neither does work twice.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
COLAB := $(VENV)/colab
# Written by tools/build.py, and only when the book was built.
BOOK := _build/html/.built
CHAPTERS := $(wildcard book/*.ipynb)
SOURCES := _config.yml _toc.yml CITATION.cff tools/build.py tools/offline.py tools/reference.py \
	tools/versions.py \
	$(wildcard book/*.ipynb book/*.md book/*.bib) \
	$(shell find ckdlite book/extra book/_static -type f -not -path '*__pycache__*')

.PHONY: help book test test-colab lint browser refresh times stamp benchmark experiments clean
.DEFAULT_GOAL := help

help:
	@echo "make book     set up, execute the chapters and build the book"
	@echo "make test     set up, build the book and run every test"
	@echo "make test-colab  execute the chapters once more, on what Colab has, and compare what they print"
	@echo "make lint     ruff alone"
	@echo "make refresh  execute the chapters in place, keep their text outputs"
	@echo "make stamp    the setup cell into every chapter; with URL=https://HOST/OWNER/NAME and"
	@echo "              BRANCH=... the repository's address, which buttons and setup cells lead to"
	@echo "make times    write into the chapters' heads how long the last build took to run them"
	@echo "make benchmark  time neuron, step and distillation (some twenty minutes, a quiet machine)"
	@echo "make experiments  the missing runs of experiments/PLAN.md (hours; goes on where it stopped; PHOTOS=FOLDER for question 6)"
	@echo "make clean    remove the built book and the environment"

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "ckdlite needs Python 3.11 or newer; $(PYTHON) is `$(PYTHON) --version 2>&1`."; \
		echo "Give another one: make PYTHON=python3.13"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	@echo "Setting up $(VENV): installing what requirements.txt pins (some minutes, about 6 GB)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@echo "Installing ckdlite from this checkout"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(BOOK): $(READY) $(SOURCES)
	@echo "Executing the chapters and building the book"
	@$(BIN)/python tools/build.py

book: $(BOOK)
	@echo "The book is up to date: `$(BIN)/python tools/build.py --where`"

lint: $(READY)
	@echo "Checking style and format"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

browser:
	@if { command -v chromium || command -v google-chrome; } >/dev/null && command -v chromedriver >/dev/null; then :; \
	elif [ "`id -u`" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing Chromium for the browser tests"; \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
			--no-install-recommends chromium chromium-driver >/dev/null; } \
			|| echo "Chromium could not be installed: the browser tests will be skipped"; \
	else echo "No chromium and chromedriver here: the browser tests will be skipped"; fi

test: lint book browser
	@echo "Testing the library and the built book"
	@$(BIN)/python -m pytest tests
	@echo "Testing the library once more with every array's shape checked"
	@CKDLITE_TYPECHECK=1 $(BIN)/python -m pytest tests -q -m "not bad_input and not browser and not slow"

$(COLAB)/ready: $(READY) tools/colab.py tools/colab-requirements.txt
	@echo "Laying what Colab has over $(VENV)"
	@$(BIN)/python tools/colab.py $(COLAB)
	@touch $@

# The book's build has executed each chapter, and `make test` compares what it printed. This is the
# second time, elsewhere.
test-colab: $(COLAB)/ready
	@$(COLAB)/bin/python tools/colab.py --compare
	@$(COLAB)/bin/python -m pytest tests/test_colab.py
	@echo "Executing the chapters there and comparing what they print"
	@$(COLAB)/bin/python -m pytest --nbval --nbval-current-env $(CHAPTERS)

refresh: $(READY)
	@$(BIN)/python tools/notebooks.py refresh $(CHAPTERS)

# Given on the command line only: an environment may have a URL of its own.
given = $(if $(findstring command,$(origin $1)),--$2 "$($1)")
stamp:
	@$(PYTHON) tools/stamp.py $(call given,URL,url) $(call given,BRANCH,branch)

times: $(READY)
	@$(BIN)/python tools/times.py

benchmark: $(READY)
	@$(BIN)/python benchmarks/speed.py

experiments: $(READY)
	@$(BIN)/python experiments/evidence.py $(if $(PHOTOS),--photos "$(PHOTOS)")

clean:
	rm -rf _build $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis
