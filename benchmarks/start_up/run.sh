#!/bin/sh
# How long the default model's server takes to its first answer, with empty and filled
# caches, three turns: two minutes. Flags are handed on to jserve.
# Needs `make setup`.
set -eu
cd "$(dirname "$0")/../.."
bin=${BIN:-.venv/bin} url=http://127.0.0.1:18431/v1/completions

first_answer() {
    $bin/python -m jserve --port=18431 --compile_cache_dir="$caches/$turn" "$@" \
        >/dev/null 2>&1 &
    server=$!
    until curl -sf $url -H 'content-type: application/json' \
        -d '{"prompt": "hello", "max_tokens": 1}' >/dev/null; do
        kill -0 $server
        sleep 0.02
    done
}

caches=$(mktemp -d)
for turn in 1 2 3; do
    for cache in empty filled; do
        begin=$(date +%s.%N)
        first_answer "$@"
        end=$(date +%s.%N)
        echo "$cache: $(echo "$end - $begin" | bc) s"
        kill $server
        wait $server || true
    done
done
rm -r "$caches"
