"""What the storage of the weights costs in quality: `tiny` on held-out text.

  python -m benchmarks.weights.quality > benchmarks/weights/quality.json

The server's own forward pass computes each window of the standard library's held-out
files, one decode row for each byte. Logits are compared with those of float32.
"""

import json
import math
import platform
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jserve_models.decoder import Decoder
from jserve_models.matrices import product
from jserve_models.registry import LoadedModel, load_model
from jserve_models.steps import StepInputs, StepShape
from jserve_tools.training.library_text import library_files, read_text

_CASES = [  # types of computation, weights and KV
    *[("float32", weights, "float32") for weights in ("auto", "bfloat16", "int8")],
    *[("float32", "fp8", "float32"), ("float32", "auto", "float8_e4m3fn")],
    *[("bfloat16", weights, "bfloat16") for weights in ("auto", "int8", "fp8")],
    ("bfloat16", "auto", "float8_e4m3fn"),
]
_NUM_WINDOWS, _WIDTH, _PAGE_SIZE = 8, 2048, 128


def window_logits(model: LoadedModel, kv_dtype: str, windows: np.ndarray) -> np.ndarray:
    """Returns the logits after each token of windows [W, S]: [W, S, V] float32."""
    head = [leaf.path for leaf in Decoder(model.config).leaves].index("head")
    num_pages = _WIDTH // _PAGE_SIZE
    places = jnp.arange(_WIDTH, dtype=jnp.int32)
    table = jnp.tile(jnp.arange(num_pages, dtype=jnp.int32), (_WIDTH, 1))

    @jax.jit
    def run(leaves: Any, inputs: StepInputs) -> jax.Array:
        kv = model.new_kv(num_pages, _PAGE_SIZE, kv_dtype)
        hidden, _ = model.forward(leaves, kv, inputs, StepShape(_WIDTH, 0, 32))
        return product(hidden, leaves[head], jnp.float32)

    return np.stack(
        [
            run(
                model.leaves,
                StepInputs(window, places, jnp.ones_like(places), table, places),
            )
            for window in jnp.asarray(windows)
        ]
    )


def judge(
    logits: np.ndarray, wanted: np.ndarray, answers: np.ndarray
) -> dict[str, Any]:
    """Returns bits per byte, and differences from the wanted logits."""
    log_p, log_q = (
        jax.nn.log_softmax(one.astype(np.float64)) for one in (wanted, logits)
    )
    nats = -np.take_along_axis(np.asarray(log_q), answers[..., None], axis=-1).mean()
    difference = logits - wanted
    return {
        "bits_per_byte": float(nats) / math.log(2),
        "perplexity": math.exp(nats),
        "logit_rms_error": float(np.sqrt(np.square(difference).mean())),
        "logit_max_error": float(np.abs(difference).max()),
        "kl_nats": float((np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()),
        "same_first": float((logits.argmax(-1) == wanted.argmax(-1)).mean()),
    }


def main() -> None:
    """Measures all cases and prints one JSON document."""
    text = read_text(library_files(is_held_out=True))
    windows = text.sources.windows(np.random.default_rng(0), _NUM_WINDOWS, _WIDTH + 1)
    found: list[dict[str, Any]] = []
    wanted = np.empty(0)
    for dtype, weights, kv_dtype in _CASES:
        model = load_model("tiny", seed=None, dtype=dtype, weights=weights)
        logits = window_logits(model, kv_dtype, windows[:, :-1])
        wanted = wanted if found else logits
        num_bytes = sum(x.nbytes for x in jax.tree.leaves(model.leaves))
        row = {"dtype": dtype, "weights": weights, "kv_dtype": kv_dtype}
        row["weight_bytes"] = num_bytes
        found.append(row | judge(logits, wanted, windows[:, 1:]))
        print(found[-1], file=sys.stderr, flush=True)
    document = {
        "model": "tiny",
        "jax": jax.__version__,
        "python": platform.python_version(),
        "num_bytes": windows[:, 1:].size,
        "logit_std": float(wanted.std()),
        "cases": found,
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
