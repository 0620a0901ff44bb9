# Two commands do everything on a fresh machine with Python 3.11+ and pip:
#   make demo    sets up, serves, replays a real trace under four policies, plots
#   make test    sets up, then lint, types and tests
# Studies have their own: benchmarks/*/run.sh
# Another interpreter: make test PYTHON=python3.12 (makes .venv again)

PYTHON ?= python3
BIN := .venv/bin
VERSION := $(shell $(PYTHON) -c 'import platform; print(platform.python_version())')
CONSTRAINTS := constraints/$(shell $(PYTHON) -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py312")').txt

.PHONY: setup demo test test-aot test-newest-jax test-browser test-families test-parallel trust aot lint types build golden clean

setup: .venv/installed-$(VERSION)

.venv/installed-$(VERSION): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit("jserve needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "setup: making .venv and installing $$(wc -l < $(CONSTRAINTS)) packages"
	@$(PYTHON) -m venv --clear .venv
	@while sleep 5; do \
	  echo "setup: $$(ls .venv/lib/python*/site-packages | grep dist-info | grep -cvE '^(pip|setuptools|jserve)-') of $$(wc -l < $(CONSTRAINTS)) packages installed"; \
	done & \
	trap "kill $$!" EXIT; \
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' && \
	$(BIN)/python -m pip install --quiet --no-compile --constraint $(CONSTRAINTS) --editable . --group dev
	@touch $@

demo: setup
	$(BIN)/jserve-bench --policies=fcfs,qoserve,sliding,ontime --num_requests=120 --length_scale=0.25 --load=0.9 --output=out/demo

# A process for each core, up to four; each file's tests stay together, for what they
# share, and files go out in their order: those that compile most come first.
test: lint types
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# Programs of the engine, compiled for GPUs and TPUs that are not there, and the kernel
# for NVIDIA, interpreted. They need Python 3.12 or newer and get an environment of their
# own, made with the first such Python that is found: make test-aot
# AOT_PYTHON=/path/to/python chooses another.
test-aot: .venv-aot/installed
	.venv-aot/bin/python -m pytest -m 'not browser' tests/aot tests/models/attention/gpu_test.py tests/models/attention/paged_mosaic_test.py tests/jserve/engine/backends_test.py --numprocesses=auto --maxprocesses=4 --dist=worksteal

# The kernel for NVIDIA with the newest JAX, in an environment on top of that of test-aot:
# may fail. NEWEST_JAX=0.11.2 takes another.
test-newest-jax: .venv-aot/installed
	@pinned=$$(.venv-aot/bin/python -c 'import jax; print(jax.__version__)'); \
	newest=$(NEWEST_JAX); \
	test -n "$$newest" || newest=$$(.venv-aot/bin/python -m pip index versions jax | sed -n '1s/^jax (\(.*\))$$/\1/p'); \
	if test -z "$$newest" || test "$$newest" = "$$pinned"; then \
	  echo "newest JAX: $${newest:-not known}, pinned: $$pinned; nothing to run"; exit; \
	fi; \
	echo "newest JAX: $$newest, pinned: $$pinned"; \
	.venv-aot/bin/python -m venv --clear .venv-newest && \
	packages=$$(echo .venv-newest/lib/python*/site-packages) && \
	echo "$(CURDIR)/$$(echo .venv-aot/lib/python*/site-packages)" >$$packages/below.pth && \
	.venv-newest/bin/python -m pip install --quiet --no-deps jax==$$newest jaxlib==$$newest jax-cuda13-plugin==$$newest jax-cuda13-pjrt==$$newest && \
	.venv-newest/bin/python -m pytest -m 'not browser' -k 'h200 or paged_mosaic' tests/aot/kernel_test.py tests/models/attention/paged_mosaic_test.py

# Llama-3.1-8B for each device, Qwen3-32B for several that share it: memory, what fits,
# roofline. Two hours on two cores.
aot: .venv-aot/installed
	.venv-aot/bin/python -m benchmarks.aot.llama_8b
	.venv-aot/bin/python -m benchmarks.aot.llama_8b --model=qwen3-32b --targets=v5e-8,v6e-4,v6e-8,h100-2,h100-4

AOT_PYTHON ?= python3 python3.12 python3.13 python3.14 $${PYENV_ROOT:-$$(dirname $$(dirname $$(command -v pyenv || echo $$HOME/.pyenv/bin/pyenv)))}/versions/3.1[2-9]*/bin/python

.venv-aot/installed: pyproject.toml constraints/py312.txt constraints/aot.txt
	@python=$$(for one in $(AOT_PYTHON); do \
	  $$one -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo $$one && break; \
	done); \
	test -n "$$python" || { echo "compiling ahead of time needs Python 3.12 or newer, and none of these is: $(AOT_PYTHON)" >&2; exit 1; }; \
	echo "test-aot: making .venv-aot with $$($$python --version), 2 GB on disk"; \
	$$python -m venv --clear .venv-aot
	@.venv-aot/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	@.venv-aot/bin/python -m pip install --quiet --constraint constraints/py312.txt --constraint constraints/aot.txt --editable . --group aot
	@touch $@

# A tiny checkpoint of every family and option, against transformers' logits.
test-families: setup
	$(BIN)/python -m pytest -m families tests/models

# Models that several devices share, and several processes, all on this machine's cores.
test-parallel: setup
	$(BIN)/python -m pytest -m parallel

# The HTML report and the live page in a real browser; needs Debian's chromium, or another on PATH.
test-browser: setup
	$(BIN)/python -m pytest -m browser

# Hostile clients and overload, faults at thirteen points, signals, full pools and lost
# files, with limits of time: for a machine with nothing else to do. Seven minutes.
trust: setup
	$(BIN)/python -m pytest -m trust -s tests/trust

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	@seconds=0; while sleep 5; do seconds=$$((seconds + 5)); echo "mypy: $$seconds s"; done & \
	trap "kill $$!" EXIT; \
	$(BIN)/mypy

build: setup
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# Writes the golden files that tests compare against; the only use of torch.
golden:
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-parity/bin/python -m pip install --quiet --group parity
	.venv-parity/bin/python tests/golden/write_golden.py
	.venv-parity/bin/python tests/golden/write_chats.py

clean:
	rm -rf .venv .venv-aot .venv-newest .venv-parity dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis
