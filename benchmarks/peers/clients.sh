#!/bin/sh
# Five benchmark clients of others, unchanged, against jserve's default model: makes an
# environment for each that is missing (11 GB in all), then measures: 20 minutes on two
# quiet cores. Arguments go to clients.py.
#
#   benchmarks/peers/clients.sh
#   benchmarks/peers/clients.sh --turns=1 --num_clients=8
#
# Needs `make setup`, Python 3.12 (PYTHON names it) for inference-perf and genai-bench,
# and for `vllm bench serve` an index that has torch's CPU build, as setup.sh says. A
# client that does not install is named in one line, and the others are run.
set -eu
cd "$(dirname "$0")/../.."
venvs=out/clients
mkdir -p $venvs

for package in inference-perf==0.7.0 guidellm==0.8.1 aiperf==0.13.0 genai-bench==0.0.5; do
    venv=$venvs/${package%%=*}
    [ -d "$venv" ] && continue
    "${PYTHON:-python3.12}" -m venv "$venv"
    "$venv/bin/pip" install --quiet "$package" || {
        echo "$package does not install"
        rm -r "$venv"
    }
done
[ -d $venvs/vllm ] || {
    benchmarks/peers/setup.sh vllm && ln -s "$PWD/benchmarks/peers/.venv-vllm" $venvs/vllm
} || echo "vllm does not install"

.venv/bin/jserve --port=8300 >$venvs/server.log 2>&1 &
trap 'kill $!' EXIT
until curl --silent http://127.0.0.1:8300/health | grep -q '"warm":true'; do
    kill -0 $!
    sleep 1
done
.venv/bin/python -m benchmarks.peers.clients --venvs=$venvs \
    --url=http://127.0.0.1:8300 "$@"
