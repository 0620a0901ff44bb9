#!/bin/sh
# The claims made for scheduling by annealing beside what the simulator finds: half an
# hour, to out/annealing. Continued where it stopped; flags are handed on.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

.venv/bin/python -m benchmarks.annealing.study "$@"
