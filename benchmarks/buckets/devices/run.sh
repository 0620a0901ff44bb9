#!/bin/sh
# Bucket strategies on devices that are not at hand: Llama-3.1-8B on one v6e and one H200
# by roofline costs, Azure conversation and code. Buckets are fitted to the steps of each
# trace's first 500 requests, and all strategies serve the next 300, at the rate at which
# the first 500 are served by fcfs with pow2 when all are due at once.
# 36 minutes on two busy cores; an interrupted call continues where it stopped. Writes to
# out/buckets/devices, then report.json and table.md here.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../../.."
bin=${BIN:-.venv/bin}
out=out/buckets/devices
mkdir -p $out

study() { # device trace qps
    cost=roofline:device=$1:model=llama-8b
    trace=tools/jserve_tools/traces/azure_$2.csv
    here=$out/$1_$2
    mkdir -p "$here"
    if test -e "$here/report.json"; then return; fi
    if ! test -e "$here/buckets.json"; then
        head -n 501 "$trace" >"$here/earlier.csv"
        (head -n 1 "$trace" && tail -n +502 "$trace") >"$here/later.csv"
        for policy in fcfs sliding; do
            rm -f "$here/steps_$policy.jsonl"
            $bin/python -m jserve_tools.simulate --cost_model="$cost" --lag=1 --poisson \
                --trace="$here/earlier.csv" --qps="$3" --seed=3 --policies=$policy \
                --bucket_strategies=linear:row_gap=1:block_gap=1 \
                --step_log="$here/steps_$policy.jsonl" --nohtml --output="$here/record"
        done
        $bin/python -m jserve_tools.fit_buckets --cost_model="$cost" \
            --step_log="$here/steps_fcfs.jsonl,$here/steps_sliding.jsonl" \
            --output="$here/buckets.json"
    fi
    $bin/python -m jserve_tools.simulate --cost_model="$cost" --lag=1 --poisson \
        --trace="$here/later.csv" --num_requests=300 --qps="$3" --num_seeds=3 \
            --num_processes=2 --policies=fcfs,sliding \
        --bucket_strategies=pow2,linear,fitted \
        --buckets="$here/buckets.json" --nohtml --output="$here"
}

study h200 conv 21.7
study h200 code 18.7
study v6e conv 10.2
study v6e code 12.5
$bin/python -m benchmarks.buckets.devices.compare
