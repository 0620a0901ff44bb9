#!/bin/sh
# Policies beside the bound on what any schedule could attain, to out/bound: an hour on
# two cores. Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

.venv/bin/python benchmarks/bound/bound.py --num_requests=1500 --output=out/bound
