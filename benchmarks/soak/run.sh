#!/usr/bin/env bash
# Half an hour of mixed traffic, then what held.
set -euo pipefail
cd "$(dirname "$0")/../.."
.venv/bin/python -m benchmarks.soak.soak --minutes=30 --output=out/soak "$@"
