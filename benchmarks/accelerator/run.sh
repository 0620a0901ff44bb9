#!/bin/bash
# What is to be measured where an accelerator is at hand, most valuable first, within a
# number of seconds: what was finished by then is kept.
#
#   benchmarks/accelerator/run.sh out/h200 840
#   benchmarks/accelerator/run.sh out/small 300 small      on CPU
#
# PYTHON names another interpreter than that of `make setup`.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
out=${1:?folder} end=$((SECONDS + ${2:?seconds})) size=${3:-}
python=${PYTHON:-.venv/bin/python}
export PYTHONPATH=$PWD:$PWD/models:$PWD/sched:$PWD/tools:${PYTHONPATH:-}
mkdir -p "$out"
small=() model=(--model=llama-8b) requests=200 cache=--compile_cache_dir=$out/cache
if [ "$size" = small ]; then
    small=(--small) requests=8
    model=(--model=tiny --max_num_seqs=4 --max_num_batched_tokens=68)
fi

# Runs a program for so many seconds at most, or for what is left.
item() {
    local name=$1 most=$2 left=$((end - SECONDS)) begin=$SECONDS rc=0
    shift 2
    if [ "$left" -lt 10 ]; then rc=skipped; else
        timeout -k 10 $((left < most ? left : most)) "$python" -m "$@" \
            >"$out/$name.log" 2>&1 || rc=$?
    fi
    echo "$name: $rc after $((SECONDS - begin)) s" | tee -a "$out/items.txt"
}

: >"$out/items.txt"
# 1, 2: ceilings, then the kernel: correct, and its share of them.
item attention 240 benchmarks.accelerator.attention "${small[@]}" --max_s=210 \
    --output="$out/attention.json"
# 3, 4: programs compiled, then steps; all of it is loaded the second time.
for run in steps restart; do
    item $run 240 benchmarks.accelerator.steps "${small[@]}" $cache \
        --ceilings="$out/attention.json" --output="$out/$run.json"
    [ $run = restart ] || item serving 300 jserve_tools.bench "${model[@]}" $cache \
        --policies=sliding --load=0.9 --num_requests=$requests --nohtml \
        --warm_up_timing_s=20 --output="$out/serving"
done
# 7: a request beside others.
item determinism 120 benchmarks.accelerator.determinism "${small[@]}" \
    --compile_cache_dir= --output="$out/determinism.json"
# 4, 8: the profile, and the simulator with it, on the requests of `serving`.
item profile 300 jserve_tools.profile_steps "${model[@]}" $cache --rounds=5 --max_s=120 \
    --num_random_shapes=$requests --output="$out/samples.npz"
qps=$("$python" -c 'import json, sys
print(json.load(open(sys.argv[1]))["runs"][0]["qps"])' "$out/serving/report.json" 2>/dev/null) &&
    item simulated 60 jserve_tools.simulate --cost_model=table:"$out/samples.npz" \
        --policies=sliding --trace=tools/jserve_tools/traces/azure_conv.csv \
        --qps="$qps" --num_requests=$requests --nohtml --output="$out/simulated"
rm -rf "$out/cache"
cat "$out/items.txt"
