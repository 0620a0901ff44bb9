#!/bin/sh
# The share of bandwidth and arithmetic that the engine's steps reach, and what a long row
# costs its neighbours: about two minutes, to out/roofline.json.
# Needs `make setup`, and a machine that does nothing else.
set -eu
cd "$(dirname "$0")/../.."

.venv/bin/python -m benchmarks.roofline.roofline --output=out/roofline.json "$@"
