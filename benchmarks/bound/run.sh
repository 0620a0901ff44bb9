#!/bin/sh
# Policies beside the bound on what any schedule could attain, an hour on
# two cores. Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

.venv/bin/python -m benchmarks.bound.bound
