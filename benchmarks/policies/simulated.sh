#!/bin/sh
# ontime, sliding and qoserve on jserve's six kinds of load, simulated on an A100 at
# shares of the capacity: with exact predictions and no buckets, and in real conditions
# (pow2 buckets, the table predictor, noise, a bias of each program, stalls). An hour on
# two cores that do nothing else; an interrupted call is continued. Reports go to
# out/policies, the table to benchmarks/policies/simulated.md.
# Needs `make setup`. PYTHON and LOADS may be set.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}

# Capacity in requests a second: fcfs, no buckets, 1,200 requests there at once, until
# four fifths of them are done.
for row in chat=23.1 documents=11.1 tight=5.18 bursts=6.32 heavy_tail=4.42 \
    reasoning_code=5.49; do
    kind=${row%=*}
    qps=$(for load in ${LOADS:-0.85 1.3}; do
        awk "BEGIN { printf \"%.4g \", $load * ${row#*=} }"
    done | sed 's/ $//; s/ /,/g')
    for condition in real exact; do
        case $condition in
        exact) options='--bucket_strategies=none --predictor=oracle' ;;
        real) options='--bucket_strategies=pow2 --predictor=table
            --noise=0.05 --bias=0.1 --stall_share=0.001' ;;
        esac
        $python -m jserve_tools.simulate --workload=$kind --qps="$qps" $options \
            --policies=ontime,sliding,qoserve:max_chunk_tokens=512 \
            --num_requests=400 --seed=21 --max_model_len=40960 --num_processes=2 \
            --nohtml --output=out/policies/simulated/$condition/$kind >/dev/null
    done
done
$python -m benchmarks.policies.simulated_table
