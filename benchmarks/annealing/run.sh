#!/bin/sh
# The claims made for scheduling by annealing beside what the simulator finds: under half
# an hour, to this folder. A call that was interrupted is continued.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

.venv/bin/python -m benchmarks.annealing.reproduce
