#!/bin/sh
# The policies on this machine's engine over HTTP, in turns (A B C D A B C D), on two
# traces with lengths quartered: 10 minutes on a machine that does nothing else, to
# out/policies.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

for trace in azure_conv azure_code; do
    .venv/bin/jserve-bench \
        --policies=fcfs,edf,qoserve,sliding,fcfs,edf,qoserve,sliding \
        --trace=tools/jserve_tools/traces/$trace.csv \
        --num_requests=200 --load=0.9,1.2 --length_scale=0.25 \
        --output=out/policies/$trace
done
