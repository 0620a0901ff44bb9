#!/bin/sh
# What the storage of the weights costs: quality on held-out text, to out/quality.json, and
# decode steps on this machine, to out/speed.json. Five minutes.
# Needs `make setup`, and for the speed a machine that does nothing else.
set -eu
cd "$(dirname "$0")/../.."

mkdir -p out
.venv/bin/python -m benchmarks.weights.quality > out/quality.json
.venv/bin/python -m benchmarks.weights.speed --model=peer-19m > out/speed.json
