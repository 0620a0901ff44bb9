"""Attention of one layer on this device: correct first, then its share of the ceilings.

  python -m benchmarks.accelerator.attention --output=out/h200/attention.json
  python -m benchmarks.accelerator.attention --small        on CPU, in seconds

The ceilings come first: a large copy (bytes read and written) and a large matrix
product, in the type of the attention. Then each backend of the platform runs decodes
and chunks of prompts, those that matter most first, over random keys and values of
several layers, so that no layer finds its own in the cache of the device. `error` is
the largest difference from a softmax in float32, over three rows of the first layer.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.results import Results, timed
from jserve.engine.programs import _COMPILER_OPTIONS
from jserve.flags import define_config_flags
from jserve.program import run_program
from jserve_models.attention import AttentionUse
from jserve_models.attention.choose import BACKENDS
from jserve_models.config import NAMED
from jserve_models.steps import StepInputs, StepShape, lay_out

_BLOCK = 64  # tokens of a prefill block, as by default on GPU and TPU
_MOST_BYTES = 24e9  # of one case's keys and values, all layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attention:
    """What is measured, and where it is written.

    Attributes:
      output: JSON file to write.
      model: Named size whose heads are taken.
      small: Whether sizes are such that a CPU takes seconds.
      max_s: Seconds after which no further case begins.
    """

    output: pathlib.Path = pathlib.Path("out/accelerator/attention.json")
    model: str = "llama-8b"
    small: bool = False
    max_s: float = 600.0


_read = define_config_flags(Attention, group="Attention")


@dataclasses.dataclass(frozen=True)
class Case:
    """A step of decodes (`chunk` 0), or of one chunk over cached tokens."""

    rows: int
    context: int  # tokens of KV before the row's own
    chunk: int = 0
    page_size: int = 128
    layers: int = 4


def cases() -> Iterator[Case]:
    """Yields the cases, those that matter most first."""
    yield Case(32, 2048)
    yield Case(1, 0, 2048)
    yield Case(1, 8192, 512)
    yield from (Case(32, 2048, page_size=size) for size in (64, 256, 32))
    yield from (Case(rows, 2048) for rows in (1, 8, 64, 128))
    yield from (Case(32, context) for context in (512, 8192))
    yield from (Case(1, 16384, chunk) for chunk in (64, 512, 2048))
    yield Case(128, 8192, layers=2)
    yield Case(8, 32768)


def ceilings(results: Results, dtype: Any, *, small: bool) -> tuple[float, float]:
    """Returns the most bytes and operations a second, of a copy and a product."""
    least_s = 0.05 if small else 1.0
    size = 2**22 if small else 2**31
    source = jax.random.bits(jax.random.key(0), (size // 4,), jnp.uint32)
    found = timed(jax.jit(lambda x: x ^ 1), source, least_s=least_s)
    results.add(case="copy", bytes=2 * size, **found)
    width = 512 if small else 8192
    scale = width**-0.5
    a, b = (
        jax.random.normal(jax.random.key(one), (width, width), dtype) for one in (1, 2)
    )
    product = jax.jit(lambda a, b: (a @ b * scale).astype(dtype))
    other = timed(lambda a: product(a, b), a, least_s=least_s)
    results.add(case="matmul", operations=2 * width**3, dtype=dtype.name, **other)
    return 2 * size / found["low_s"], 2 * width**3 / other["low_s"]


def make_inputs(case: Case) -> tuple[StepInputs, StepShape, int]:
    """Returns a step's inputs and shape, and the pages of a layer."""
    num_blocks = -(-case.chunk // _BLOCK)
    shape = StepShape(0 if case.chunk else case.rows, num_blocks, _BLOCK)
    length = case.context + max(case.chunk, 1)
    columns = -(-length // case.page_size)
    num_pages = case.rows * columns
    table = np.random.default_rng(0).permutation(num_pages).reshape(case.rows, columns)
    if case.chunk:  # all blocks are of one sequence
        starts = case.context + _BLOCK * np.arange(num_blocks)
        lengths = np.minimum(length - starts, _BLOCK)
        table = np.repeat(table, num_blocks, axis=0)
    else:
        starts, lengths = np.full(case.rows, case.context), np.ones(case.rows)
    tokens = np.zeros(shape.num_rows + num_blocks * _BLOCK)
    arrays = (tokens, starts, lengths, table, np.zeros(1))
    inputs = StepInputs(*(jnp.asarray(one, jnp.int32) for one in arrays))
    return inputs, shape, num_pages


def error(
    case: Case, num_kv_heads: int, pages: jax.Array, q: jax.Array, out: jax.Array
) -> float:
    """Returns the largest difference from a softmax in float32, of three tokens.

    Args:
      pages: [N, P, 2K, D] written pages of one layer.
      q: [T, H, D]; so is `out`.
    """
    inputs, _, _ = make_inputs(case)
    num_tokens, _, head_dim = q.shape
    worst = 0.0
    for token in sorted({0, num_tokens // 2, num_tokens - 1}):
        row = token // _BLOCK if case.chunk else token
        position = int(inputs.row_start[row]) + (token % _BLOCK if case.chunk else 0)
        seen = pages[inputs.page_table[row]].reshape(-1, *pages.shape[2:])
        seen = seen[: position + 1, :, :head_dim].astype(jnp.float32)
        query = q[token].astype(jnp.float32).reshape(num_kv_heads, -1, head_dim)
        exact = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        scores = exact("kgd,skd->kgs", query, seen[:, 0 : 2 * num_kv_heads : 2])
        weights = jax.nn.softmax(scores * head_dim**-0.5, axis=-1)
        wanted = exact("kgs,skd->kgd", weights, seen[:, 1 : 2 * num_kv_heads : 2])
        got = out[token].astype(jnp.float32).reshape(wanted.shape)
        worst = max(worst, float(jnp.max(jnp.abs(got - wanted))))
    return worst


def measure(
    name: str, case: Case, use: AttentionUse, *, least_s: float
) -> dict[str, Any]:
    """Returns the error and the times of a backend; why it cannot run, otherwise."""
    backend, find_fault = BACKENDS[name]
    if (fault := find_fault(use)) is not None:
        return {"fault": fault}
    config, dtype = use.config, use.dtype
    inputs, shape, num_pages = make_inputs(case)
    many = dataclasses.replace(config, num_layers=case.layers)
    (kv_shape,) = backend.kv_shapes(many, num_pages, case.page_size)
    if np.prod(kv_shape, dtype=float) * dtype.itemsize > _MOST_BYTES:
        return {"fault": f"its keys and values take more than {_MOST_BYTES:g} bytes"}
    kv_key, *keys = jax.random.split(jax.random.key(0), 4)
    draw = jax.jit(jax.random.normal, static_argnums=(1, 2))
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    q, k, v = (
        draw(key, (len(inputs.tokens), count, config.head_dim), dtype)
        for key, count in zip(keys, heads, strict=True)
    )

    def attend(num_layers: int, carry: Any, k: Any, v: Any, inputs: Any) -> Any:
        q, kv = carry
        layout = lay_out(inputs, shape, num_pages, case.page_size)
        for layer in range(num_layers):
            q, kv = backend.attend(
                *(q, k, v, kv, layout, jnp.int32(layer)), scale=config.head_dim**-0.5
            )
        return q, kv

    def compiled(num_layers: int, kv: Any) -> Callable[[Any], Any]:
        function = jax.jit(
            functools.partial(attend, num_layers),
            donate_argnums=0,
            compiler_options=_COMPILER_OPTIONS.get(use.platform),
        )
        # Donated, like a step's cache; the queries' array is not used again.
        ready = function.lower((q, kv), k, v, inputs).compile()
        return lambda carry: ready(carry, k, v, inputs)

    kv: Any = (draw(kv_key, kv_shape, dtype),)
    out, kv = compiled(1, kv)((jnp.copy(q), kv))
    pages = kv[0][: kv_shape[0] // case.layers]
    found = {"error": error(case, config.num_kv_heads, pages, q, out)}
    del pages
    times = timed(compiled(case.layers, kv), (out, kv), least_s=least_s)
    return found | {
        key: value / (1 if key == "calls" else case.layers)
        for key, value in times.items()
    }


def shares(
    case: Case, use: AttentionUse, layer_s: float, most: tuple[float, float]
) -> Mapping[str, float]:
    """Returns the parts of both ceilings that a layer reaches, by what it must do."""
    config = use.config
    keys = case.context + max(case.chunk, 1)
    width = 2 * config.num_kv_heads * config.head_dim * use.dtype.itemsize
    pairs = case.rows * (case.context + 1)
    if case.chunk:
        pairs = case.chunk * case.context + case.chunk * (case.chunk + 1) // 2
    operations = 4 * config.num_heads * config.head_dim * pairs
    return {
        "bandwidth_share": case.rows * keys * width / layer_s / most[0],
        "matmul_share": operations / layer_s / most[1],
    }


def main(argv: Sequence[str]) -> None:
    """Measures all cases in their order until the time is over."""
    del argv
    config = _read()
    platform = jax.default_backend()
    dtype = np.dtype("float32") if platform == "cpu" else jnp.dtype("bfloat16")
    results = Results(config.output, "attention.py", config.max_s)
    most = ceilings(results, dtype, small=config.small)
    names = [*(name for name in ("gpu", "tpu") if name == platform), "page_loop"]
    small = (Case(4, 100), Case(1, 64, 128))
    for case in small if config.small else cases():
        if results.is_late:
            break
        for name in names:
            use = AttentionUse(
                config=NAMED["tiny" if config.small else config.model],
                platform=platform,
                dtype=dtype,
                page_size=case.page_size,
                num_rows=case.rows + case.chunk // _BLOCK,
                max_pages_per_row=-(-(case.context + case.chunk + 1) // case.page_size),
            )
            facts = dataclasses.asdict(case) | {"case": "attention", "backend": name}
            try:
                found = measure(name, case, use, least_s=0.05 if config.small else 0.5)
            except Exception as fault:  # of a compiler, or for want of memory
                found = {"fault": f"{type(fault).__name__}: {fault}"[:500]}
            if "s" in found:
                found |= shares(case, use, found["s"], most)
            results.add(**facts, **found)


if __name__ == "__main__":
    run_program(sys.modules[__name__])
