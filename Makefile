# Every target makes the environment it needs; nothing has to be installed by hand but Python 3.11 to 3.13.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help install test slow lint types docs parity ray slices results stats demo picture clean
help:  ## This list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

install: $(VENV)/.installed  ## Make .venv with the package and its development tools

lint: install  ## ruff: style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy
	$(BIN)/mypy

docs: install  ## The site with the API reference, in build/site; a link that leads nowhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

test: install lint types docs  ## Everything CI runs: style, types, docs, results up to date, tests
	$(BIN)/python -m benchmarks.render_results --check
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 \
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m 'not slow'

slow: install  ## Tests of repeats, end to end: minutes
	$(BIN)/python -m pytest -m slow

# torch is large, so only this target installs it; without it these tests are skipped.
parity: install  ## Logits against Hugging Face's T5, mT5 and UMT5 (installs torch and transformers)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,parity]'
	$(BIN)/python -m pytest tests/parity -rs

# Ray is large and starts slowly, so only this target installs it; without it these tests are skipped.
ray: install  ## Replicas and workers of Ray, some killed (installs ray)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,ray]'
	$(BIN)/python -m pytest tests/server/test_ray.py tests/serving/test_workers.py tests/data/test_prepare_by_ray.py -rs

# XLA's TPU compiler is large, so only this target installs it; without it these tests are skipped.
slices: install  ## `m6rec compile` for slices that are not there (installs libtpu)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,compile]'
	$(BIN)/python -m pytest tests/compilation -rs

results: install  ## Render docs/results.md and speed.md from benchmarks/results
	$(BIN)/python -m benchmarks.render_results

stats: install  ## Lines of each folder, its budget (pyproject.toml) and the ceiling to reach
	$(BIN)/python -m tests.test_budget

demo: install  ## MovieLens-100k from nothing to runs/demo/report.html
	$(BIN)/m6rec demo

picture:  ## docs/images/report.png of runs/demo/report.html (wants chromium)
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1180,900 \
	    --screenshot=docs/images/report.png file://$(CURDIR)/runs/demo/report.html
	$(BIN)/python -c "from PIL import Image; p = 'docs/images/report.png'; \
	    Image.open(p).quantize(64).save(p, optimize=True)"

clean:  ## Remove the environment and caches (runs/ stays)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
