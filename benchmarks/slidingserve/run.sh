#!/bin/sh
# SlidingServe's experiments in the simulator, beside the paper's: under an hour, to
# out/slidingserve. Continued where it stopped; flags are handed on.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

.venv/bin/python -m benchmarks.slidingserve.study "$@"
