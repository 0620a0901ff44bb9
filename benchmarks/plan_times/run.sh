#!/bin/sh
# The time of one plan of each policy: some minutes, to out/plan_times.json.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

mkdir -p out
.venv/bin/python -m benchmarks.plan_times.plan_time \
    --num_running=128 --num_waiting=1000,10000 > out/plan_times.json
