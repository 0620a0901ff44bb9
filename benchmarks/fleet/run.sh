#!/bin/sh
# Routers beside each other in simulation, two hours on two cores. Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

.venv/bin/python -m benchmarks.fleet.fleet
