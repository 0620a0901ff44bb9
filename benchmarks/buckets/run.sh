#!/bin/sh
# Buckets fitted to what a server recorded, on later requests: two strategies and two
# policies on this machine's engine in turns, 7 minutes; then every pair in the
# simulator, from the profile of this engine, 10 minutes. Writes to out/buckets.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."

conv=tools/jserve_tools/traces/azure_conv.csv
mkdir -p out/buckets
rm -f out/buckets/steps_*
head -n 401 $conv >out/buckets/first.csv
(head -n 1 $conv && tail -n +402 $conv | head -n 100) >out/buckets/later.csv

for policy in fcfs sliding; do
    .venv/bin/jserve-bench --policies=$policy --qps=19 \
        --trace=out/buckets/first.csv --num_requests=400 --length_scale=0.25 \
        --step_log=out/buckets/steps_$policy.jsonl --nohtml \
        --output=out/buckets/record_$policy
done
.venv/bin/jserve-fit-buckets \
    --step_log=out/buckets/steps_fcfs.jsonl,out/buckets/steps_sliding.jsonl \
    --output=out/buckets/buckets.json

.venv/bin/jserve-bench --policies=fcfs,sliding \
    --bucket_strategies=pow2,fitted,pow2,fitted,pow2,fitted,pow2,fitted \
    --buckets=out/buckets/buckets.json --load=0.9,1.2 \
    --trace=out/buckets/later.csv --num_requests=100 --length_scale=0.25 \
    --output=out/buckets/engine

.venv/bin/jserve-simulate --cost_model=table:benchmarks/buckets/samples.npz \
    --trace=$conv --num_requests=500 --qps=2.5 --num_seeds=3 --lag=1 \
    --bucket_strategies=pow2,linear,fitted \
    --policies=fcfs,edf,qoserve,sliding --num_processes=2 \
    --output=out/buckets/simulated
