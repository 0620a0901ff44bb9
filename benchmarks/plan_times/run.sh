#!/bin/sh
# The time of one plan of each policy: some minutes, to out/plan_times.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

.venv/bin/python -m benchmarks.plan_times.plan_time \
    --num_running=128 --num_waiting=1000,10000 --output=out/plan_times/128_running.json
