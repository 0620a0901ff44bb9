#!/bin/sh
# The model in both forms, and the comparison: about 17 minutes on two cores that do
# nothing else. An interrupted run continues. Arguments go to compare.py.
# Needs `make setup` and setup.sh.
set -eu
cd "$(dirname "$0")/../.."
here=benchmarks/peers

$here/.venv-transformers/bin/python $here/make_model.py
$here/.venv-llama/bin/python $here/make_gguf.py || echo "no GGUF: llama.cpp is left out"
.venv/bin/python -m benchmarks.peers.compare "$@"
