"""Runs llama.cpp's own HTTP server, as the package `xllamacpp` contains it.

Runs in llama.cpp's environment; `--help` lists the flags.
"""

import signal
from collections.abc import Sequence

import xllamacpp
from absl import app, flags

_MODEL = flags.DEFINE_string("model", None, "GGUF file.", required=True)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
_PORT = flags.DEFINE_integer("port", 8080, "Port to listen on.")
_THREADS = flags.DEFINE_integer("threads", 2, "Number of threads.")
_NUM_SLOTS = flags.DEFINE_integer("num_slots", 32, "Most requests that run at once.")
_SLOT_TOKENS = flags.DEFINE_integer("slot_tokens", 1280, "Context of a slot, tokens.")
_KV_TYPE = flags.DEFINE_enum("kv_type", "f16", ["f16", "f32"], "Type of the KV cache.")


def main(argv: Sequence[str]) -> None:
    """Serves until it is ended."""
    del argv
    params = xllamacpp.CommonParams()
    params.model.path = _MODEL.value
    params.model_alias = {"peer"}
    params.hostnames = [_HOST.value]
    params.port = _PORT.value
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = _THREADS.value
    # Each slot has its part of the cache.
    params.n_parallel = _NUM_SLOTS.value
    params.n_ctx = _NUM_SLOTS.value * _SLOT_TOKENS.value
    kv_type = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{_KV_TYPE.value.upper()}")
    params.cache_type_k = params.cache_type_v = kv_type
    # No prefix is shared, and no finished request is kept for a later one.
    params.cache_prompt = False
    params.cache_ram_mib = 0
    server = xllamacpp.Server(params)
    print(f"serving at {server.listening_address}", flush=True)
    signal.pause()


if __name__ == "__main__":
    app.run(main)
