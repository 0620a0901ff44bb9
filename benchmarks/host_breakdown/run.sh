#!/bin/sh
# Where a step's time goes at 32 running requests: a few minutes, to
# out/host_breakdown.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

.venv/bin/jserve-bench --mode=closed --clients=32 --num_requests=256 \
    --prompt_tokens=128 --output_tokens=64 --profile_host --output=out/host_breakdown
