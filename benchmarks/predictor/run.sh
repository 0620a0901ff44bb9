#!/bin/sh
# The predictors' profile, training and report, as committed here, then the times of
# whole requests from the same profile: 6 minutes to measure, a few to train. Writes to
# out/predictor and out/request_latency.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

.venv/bin/jserve-profile --output=out/predictor/samples.npz
.venv/bin/jserve-train-predictor --samples=out/predictor/samples.npz \
    --output=out/predictor
.venv/bin/jserve-train-predictor --kind=request \
    --samples=out/predictor/samples.npz --output=out/request_latency
