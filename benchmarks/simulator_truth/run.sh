#!/bin/sh
# Is the simulator right about this machine's engine? Profiles it, replays two traces
# over HTTP under four policies at 0.7, 0.9 and 1.2 of capacity, simulates the same
# requests, and writes benchmarks/simulator_truth/engine.md. Half an hour to measure, on a
# machine that does nothing else, and ten minutes to simulate. A replay that is there
# already is not made again: remove out/simulator_truth to measure all.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
folder=out/simulator_truth

test -e $folder/samples.npz ||
    $python -m jserve_tools.profile_steps --rounds=7 --max_s=200 \
        --output=$folder/samples.npz
for trace in azure_conv azure_code; do
    for policy in fcfs qoserve sliding ontime; do
        test -e $folder/$trace-$policy-1.2.json ||
            $python -m benchmarks.simulator_truth.replays --folder=$folder \
                --trace=$trace --policy=$policy
    done
done
$python -m benchmarks.simulator_truth.engine --folder=$folder > $folder/engine.md
mv $folder/engine.md benchmarks/simulator_truth/engine.md
