"""How the memory of a GPU or TPU is divided, and claimed before JAX starts.

A share of it (`device_memory_fraction`) holds the weights, what the largest step needs
while it runs, the programs, and the KV pool, which gets all that is left. Nothing here
asks a device: sizes go in, and numbers come out.
"""

import dataclasses
import logging
from collections.abc import Mapping, MutableMapping

from jserve_models.config import ModelConfig
from jserve_sched.buckets.growth import BucketPlan
from jserve_sched.buckets.table import Bucket, BucketTable

_LOG = logging.getLogger("jserve")
_FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
_MOST_PAGES = 2**20  # so that the host's ledger stays small
_FLOAT_BYTES = 4
_STEP_BYTES = 16 * 2**20  # of a step, whatever its size
_FETCH_BYTES = 2 * 2**20  # of a layer: XLA for TPU fetches weights ahead, in slices
# Of a program's code and constants, which on TPU stand in the device's memory.
_PROGRAM_BYTES, _LAYER_BYTES = 8 * 2**20, 4 * 2**20


def claim_memory(environ: MutableMapping[str, str], fraction: float) -> None:
    """Sets the share of a GPU's memory that JAX takes; 75 % if it is not called.

    To be called before JAX is imported. What a user has set stays.
    """
    if not any(name in environ for name in _FRACTIONS):
        environ[_FRACTIONS[0]] = str(fraction)


def step_bytes(
    model: ModelConfig, bucket: Bucket, *, num_slots: int, page_size: int, itemsize: int
) -> int:
    """Returns a bound on what a step needs beside weights and KV, while it runs.

    It is the larger of two: what a layer holds, with attention that has no kernel, and
    the sampler's arrays of logits. By the compiler, for H200 and an 8B model, layers
    need a quarter of it at 2,176 tokens, and the sampler seven eighths at 128 rows.

    Args:
      itemsize: Bytes of a number of the computation and of KV.
    """
    num_rows = bucket.num_rows + bucket.num_blocks
    heads, kv_heads, size = model.num_heads, model.num_kv_heads, model.head_dim
    taken = model.experts.per_token if model.experts else 1
    width = (3 + taken) * model.hidden_size + 3 * taken * model.intermediate_size
    width += 2 * (heads + 2 * kv_heads) * size
    scores = 2 * heads * (size + page_size)
    pages = 4 * page_size * kv_heads * size
    layer = itemsize * (bucket.num_tokens * width + num_rows * pages)
    layer += _FLOAT_BYTES * bucket.num_tokens * scores
    logits = _FLOAT_BYTES * 9 * min(num_rows, num_slots) * model.vocab_size
    fetches = model.num_layers * _FETCH_BYTES
    return _STEP_BYTES + fetches + max(layer, logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryNeeds:
    """What a model and its programs take of a device's memory.

    Attributes:
      weight_bytes: All weights, and what adjusts the logits of slots.
      page_bytes: One KV page over all layers, K and V together.
      fixed_bytes: Of the KV pool, whatever the number of its pages.
      page_size: Tokens in one page.
      max_model_len: Tokens of the longest request, which must fit.
      num_layers: Layers, on which the size of a program depends.
      step_bytes: What the step of each bucket needs while it runs.
    """

    weight_bytes: int
    page_bytes: int
    fixed_bytes: int
    page_size: int
    max_model_len: int
    num_layers: int
    step_bytes: Mapping[Bucket, int]

    @property
    def request_pages(self) -> int:
        """KV pages of the longest request."""
        return -(-self.max_model_len // self.page_size)

    def table_bytes(self, table: BucketTable) -> int:
        """Returns what the programs of a table take, of which one runs at a time."""
        largest = max(self.step_bytes[bucket] for bucket in table.buckets)
        code = _PROGRAM_BYTES + self.num_layers * _LAYER_BYTES
        return largest + table.num_programs * code


def fit_memory(
    needs: MemoryNeeds, plan: BucketPlan, *, device_bytes: int, kv_cache_bytes: int = 0
) -> tuple[BucketPlan, int]:
    """Returns the tables that fit beside weights and KV, and the bytes of the KV pool.

    A table is left out only if the pool could not hold one request of the full context.
    The number of pages is rounded down to six binary digits, so that a device with a
    little less free memory has the same programs.

    Args:
      device_bytes: Bytes that may be used.
      kv_cache_bytes: Bytes that the pool is to have; 0 takes what is left.

    Raises:
      ValueError: If weights, the covering table and one request, or the pool, do not
        fit; with the numbers.
    """
    request_bytes = needs.fixed_bytes + needs.request_pages * needs.page_bytes
    least_bytes = kv_cache_bytes or request_bytes

    def left_bytes(table: BucketTable) -> int:
        return device_bytes - needs.weight_bytes - needs.table_bytes(table)

    # Tables: all up to the last one that leaves enough.
    fitting = [one for one in plan.tables if left_bytes(one) >= least_bytes]
    if not fitting:
        covering = plan.covering
        left = left_bytes(covering) - needs.fixed_bytes
        num_tokens = max(left // needs.page_bytes, 0) * needs.page_size
        name, value = "max_model_len", needs.max_model_len
        if kv_cache_bytes:
            name, value = "kv_cache_bytes", kv_cache_bytes
        raise ValueError(
            f"{name}={value}: {_text(least_bytes)} of KV do not fit beside "
            f"{_text(needs.weight_bytes)} of weights and "
            f"{_text(needs.table_bytes(covering))} for steps of "
            f"{max(one.num_tokens for one in covering.buckets)} tokens in the "
            f"{_text(device_bytes)} of the device that may be used: there is room for "
            f"{num_tokens} tokens"
        )
    table = fitting[-1]
    if table != plan.final:
        _LOG.warning(
            "%d of %d programs are left out, so that %s of KV fit in the device's "
            "memory; rows %s, blocks %s",
            plan.final.num_programs - table.num_programs,
            plan.final.num_programs,
            _text(least_bytes),
            list(table.row_edges),
            list(table.block_edges),
        )
    # The pool.
    if not kv_cache_bytes:
        left = left_bytes(table) - needs.fixed_bytes
        num_pages = min(left // needs.page_bytes, _MOST_PAGES)
        digit = 1 << max(num_pages.bit_length() - 6, 0)
        num_pages = max(num_pages // digit * digit, needs.request_pages)
        kv_cache_bytes = needs.fixed_bytes + num_pages * needs.page_bytes
    _LOG.info(
        "device memory: %s may be used; weights %s, steps %s, KV %s",
        *map(_text, (device_bytes, needs.weight_bytes)),
        *map(_text, (needs.table_bytes(table), kv_cache_bytes)),
    )
    return plan.within(table.num_programs), kv_cache_bytes


def check_host(
    model: str, weight_bytes: int, kv_cache_bytes: int, free_bytes: int | None
) -> None:
    """Checks that weights and KV pool fit in the free memory of a host without devices.

    Raises:
      ValueError: If they do not, with the numbers.
    """
    if free_bytes is not None and weight_bytes + kv_cache_bytes > free_bytes:
        raise ValueError(
            f"model={model}: {_text(weight_bytes)} of weights and "
            f"{_text(kv_cache_bytes)} of KV do not fit in the {_text(free_bytes)} of "
            "memory that are free; weights=int8 or dtype=bfloat16 take less"
        )


def _text(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
