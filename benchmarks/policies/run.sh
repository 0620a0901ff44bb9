#!/bin/sh
# The policies on this machine's engine over HTTP, in turns (A B C D A B C D), on two
# traces with lengths quartered: 35 minutes on a machine that does nothing else, to
# out/policies. NUM_REQUESTS=300 takes half of that.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

for trace in azure_conv azure_code; do
    .venv/bin/jserve-bench \
        --policies=fcfs,qoserve,sliding,ontime,fcfs,qoserve,sliding,ontime \
        --trace=tools/jserve_tools/traces/$trace.csv \
        --num_requests="${NUM_REQUESTS:-600}" --load=0.9,1.2,3 --length_scale=0.25 \
        --output=out/policies/$trace
done
