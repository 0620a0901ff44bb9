#!/bin/sh
# The predictors' profile, training and report, as committed here: 6 minutes to measure, a
# few to train. Writes to out/predictor.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

.venv/bin/jserve-profile --output=out/predictor/samples.npz
.venv/bin/jserve-train-predictor --samples=out/predictor/samples.npz \
    --output=out/predictor
