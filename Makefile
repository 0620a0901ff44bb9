# Two commands do everything on a fresh machine with Python 3.11+ and pip:
#   make demo    sets up, serves, replays a real trace under four policies, plots
#   make test    sets up, then lint, types and all tests
# Another interpreter: make test PYTHON=python3.12 (makes .venv anew)

PYTHON ?= python3
BIN := .venv/bin
VERSION := $(shell $(PYTHON) -c 'import platform; print(platform.python_version())')
CONSTRAINTS := constraints/$(shell $(PYTHON) -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py312")').txt

.PHONY: setup demo test test-browser lint types bench build golden golden-annealing clean reproduce-slidingserve reproduce-annealing compare-policies compare-buckets predictor request-latency

setup: .venv/installed-$(VERSION)

.venv/installed-$(VERSION): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit("jserve needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "setup: making .venv and installing $$(wc -l < $(CONSTRAINTS)) packages"
	@$(PYTHON) -m venv --clear .venv
	@while sleep 5; do \
	  echo "setup: $$(ls -d .venv/lib/python*/site-packages/*.dist-info | wc -l) of $$(wc -l < $(CONSTRAINTS)) packages installed"; \
	done & \
	trap "kill $$!" EXIT; \
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' && \
	$(BIN)/python -m pip install --quiet --no-compile --constraint $(CONSTRAINTS) --editable . --group dev
	@touch $@

demo: setup
	$(BIN)/jserve-bench --launch --policies=fcfs,edf,qoserve,sliding --num_requests=120 --length_scale=0.25 --load=0.9 --output=out/demo

# A process for each core, up to four; each file's tests stay together, for what they
# share, and files go out in their order: those that compile most come first.
test: lint types
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# The HTML report in a real browser; needs Debian's chromium, or another on PATH.
test-browser: setup
	$(BIN)/python -m pytest -m browser

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# Where a step's time goes at 32 running requests, and the time of one plan.
bench: setup
	$(BIN)/jserve-bench --mode=closed --clients=32 --num_requests=256 --prompt_tokens=128 --output_tokens=64 --profile_host --output=out/bench
	$(BIN)/python benchmarks/plan_time.py --output=out/bench/plan_time.json
	$(BIN)/python benchmarks/plan_time.py --num_running=128 --num_waiting=500,10000 --output=out/bench/plan_time_128.json
	$(BIN)/python benchmarks/predict_time.py --output=out/bench/predict_time.json

build: setup
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

# Writes the golden files that tests compare against; the only use of torch.
golden:
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	.venv-parity/bin/python -m pip install --quiet --group parity
	.venv-parity/bin/python tests/golden/write_golden.py

# The optima that the search of `annealing` is held against.
golden-annealing: setup
	$(BIN)/python -m tests.golden.write_annealing

# SlidingServe's tables in the simulator: under half an hour, or hours with
# REPRODUCE=full, which is continued where it stopped.
REPRODUCE ?= quick
reproduce-slidingserve: setup
	$(BIN)/python -m benchmarks.slidingserve.reproduce --mode=$(REPRODUCE)

# The claims made for scheduling by annealing, beside what the simulator finds: under
# half an hour; a call that was interrupted is continued.
reproduce-annealing: setup
	$(BIN)/python benchmarks/annealing/plan_time.py --output=benchmarks/annealing
	$(BIN)/python benchmarks/annealing/reproduce.py

# The policies on this machine's engine over HTTP, in turns (A B C D A B C D), on two
# traces with lengths quartered: 10 minutes on a machine that does nothing else.
TURNS := fcfs,edf,qoserve,sliding,fcfs,edf,qoserve,sliding
compare-policies: setup
	for trace in azure_conv azure_code; do \
	  $(BIN)/jserve-bench --launch --policies=$(TURNS) --num_requests=200 --load=0.9,1.2 --length_scale=0.25 --trace=tools/jserve_tools/traces/$$trace.csv --output=out/policies/$$trace || exit 1; \
	done

# Buckets fitted to what a server recorded, on later requests: two strategies and two
# policies on this machine's engine in turns, 7 minutes; then every pair in the
# simulator, from the profile of this engine, 10 minutes.
CONV := tools/jserve_tools/traces/azure_conv.csv
PAIRS := pow2,fitted,pow2,fitted,pow2,fitted,pow2,fitted
RECORD := --length_scale=0.25 --num_requests=400
compare-buckets: setup
	mkdir -p out/buckets
	rm -f out/buckets/steps_*
	head -n 401 $(CONV) > out/buckets/first.csv
	(head -n 1 $(CONV); tail -n +402 $(CONV) | head -n 100) > out/buckets/later.csv
	for policy in fcfs sliding; do \
	  $(BIN)/jserve-bench --launch --policies=$$policy --qps=19 $(RECORD) --trace=out/buckets/first.csv --step_log=out/buckets/steps_$$policy.jsonl --nohtml --output=out/buckets/record_$$policy || exit 1; \
	done
	$(BIN)/jserve-fit-buckets --step_log=out/buckets/steps_fcfs.jsonl,out/buckets/steps_sliding.jsonl --output=out/buckets/buckets.json
	$(BIN)/jserve-bench --launch --bucket_strategies=$(PAIRS) --policies=fcfs,sliding --buckets=out/buckets/buckets.json --load=0.9,1.2 --length_scale=0.25 --num_requests=100 --trace=out/buckets/later.csv --output=out/buckets/engine
	$(BIN)/jserve-simulate --cost_model=table:benchmarks/buckets/samples.npz --trace=$(CONV) --num_requests=500 --qps=2.5 --num_seeds=3 --lag=1 --bucket_strategies=pow2,two_bit,linear,pad_limit,fitted --policies=fcfs,edf,qoserve,sliding --num_processes=2 --output=out/buckets/simulated

# The predictors' profile, training and report, as committed in benchmarks/predictor.
predictor: setup
	$(BIN)/jserve-profile --output=out/predictor/samples.npz
	$(BIN)/jserve-train-predictor --samples=out/predictor/samples.npz --output=out/predictor

# The times of whole requests, from the same profile; `make predictor` first.
request-latency: setup
	$(BIN)/jserve-train-predictor --kind=request --samples=out/predictor/samples.npz --output=out/request_latency

clean:
	rm -rf .venv .venv-parity dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis
