#!/bin/sh
# Where a step's time goes at 32 running requests of the default model, to
# out/host_breakdown: some minutes.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

.venv/bin/jserve-bench --mode=closed --clients=32 --num_requests=256 \
    --prompt_tokens=128 --output_tokens=64 --profile_host --output=out/host_breakdown
