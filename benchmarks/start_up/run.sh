#!/bin/sh
# How long the default model's server takes to its first answer: two minutes.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

.venv/bin/python benchmarks/start_up/first_answer.py
