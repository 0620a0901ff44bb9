#!/bin/sh
# SlidingServe's tables in the simulator, beside the paper's: under half an hour, to
# out/slidingserve/quick. `run.sh full` takes hours, writes to this folder, and is
# continued where it stopped.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

.venv/bin/python -m benchmarks.slidingserve.reproduce --mode="${1:-quick}"
