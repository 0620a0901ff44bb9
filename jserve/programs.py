"""One compiled program per bucket, made ahead of time; none is made later.

Programs are lowered from shapes one after the other (tracing holds the interpreter
lock), compiled in parallel, and kept in JAX's persistent cache. Calling for a shape
that is not there raises; nothing falls back to compiling silently.
"""

import concurrent.futures
import dataclasses
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jserve import packing, sampling
from jserve.compile_log import compile_log
from jserve_models.registry import LoadedModel
from jserve_models.steps import KvCache, StepShape
from jserve_sched.buckets import Bucket, BucketTable

_STACK_BYTES = 64 * 2**20  # deep graphs overflow the default thread stack


class UncompiledShapeError(RuntimeError):
    """A step was asked for in a shape that was not compiled at start-up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramReport:
    """What one program cost to make.

    Attributes:
      bucket: its shape.
      trace_s: seconds to trace and lower.
      compile_s: seconds to compile, or to load from the persistent cache.
      temp_bytes: scratch memory while it runs.
      alias_bytes: bytes updated in place; the KV cache must be among them.
    """

    bucket: Bucket
    trace_s: float
    compile_s: float
    temp_bytes: int
    alias_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceState:
    """What stays on the device from step to step; donated to each program.

    Attributes:
      kv: keys and values.
      slot_tokens: `[num_slots]` int32, the token each slot sampled last.
    """

    kv: KvCache
    slot_tokens: jax.Array


class Programs:
    """The compiled step functions of one engine.

    Attributes:
      table: the shapes.
      reports: what each program cost, in the order they were compiled.
      wall_s: seconds that making all of them took.
      num_cache_hits: how many came from the persistent cache.
    """

    def __init__(
        self,
        *,
        model: LoadedModel,
        table: BucketTable,
        max_pages_per_row: int,
        captures_logits: bool,
    ):
        self.table = table
        self.reports: list[ProgramReport] = []
        self.wall_s = 0.0
        self.num_cache_hits = 0
        self._model = model
        self._max_pages_per_row = max_pages_per_row
        self._captures_logits = captures_logits
        self._compiled: dict[Bucket, jax.stages.Compiled] = {}
        self._log = compile_log()
        self._num_compiles_when_warm: int | None = None

    @property
    def num_compiled(self) -> int:
        """Programs ready to run."""
        return len(self._compiled)

    @property
    def num_compiles_after_warmup(self) -> int:
        """Compilations in this process since `mark_warm`; anything but 0 is a bug."""
        if self._num_compiles_when_warm is None:
            return 0
        return self._log.num_compiles - self._num_compiles_when_warm

    def mark_warm(self) -> None:
        """Says that from now on nothing may compile."""
        self._num_compiles_when_warm = self._log.num_compiles

    def step_function(self, bucket: Bucket) -> Callable[..., tuple[Any, ...]]:
        """Returns the pure step of one shape.

        It takes (leaves, kv, slot_tokens, packed) and returns (kv, slot_tokens,
        tokens `[S]` int32), and with captured logits also logits and scores
        `[S, V]`.
        """
        shape = StepShape(bucket.num_rows, bucket.num_blocks, bucket.block_tokens)

        def step(
            leaves: list[jax.Array],
            kv: KvCache,
            slot_tokens: jax.Array,
            packed: jax.Array,
        ) -> tuple[Any, ...]:
            step_in = packing.unpack(
                packed, slot_tokens, bucket, self._max_pages_per_row
            )
            logits, kv = self._model.forward(leaves, kv, step_in.inputs, shape)
            tokens = sampling.sample(logits, step_in.sampling)
            slot_tokens = slot_tokens.at[step_in.target].set(tokens, mode="drop")
            if self._captures_logits:
                scores = sampling.scores(logits, step_in.sampling)
                return kv, slot_tokens, tokens, logits, scores
            return kv, slot_tokens, tokens

        return step

    def compile_all(self, state: DeviceState) -> None:
        """Makes every program, largest first.

        Args:
          state: gives shapes and placement; not touched.
        """
        start_s = time.perf_counter()
        num_cache_hits = self._log.num_cache_hits
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            (self._model.leaves, state.kv, state.slot_tokens),
        )
        old_stack_bytes = threading.stack_size(_STACK_BYTES)
        try:
            with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
                jobs = []
                for bucket in self.table.buckets:
                    trace_start_s = time.perf_counter()
                    size = packing.packed_size(
                        bucket, state.slot_tokens.shape[0], self._max_pages_per_row
                    )
                    packed = jax.ShapeDtypeStruct((size,), np.int32)
                    lowered = jax.jit(
                        self.step_function(bucket), donate_argnums=(1, 2)
                    ).lower(*abstract, packed)
                    trace_s = time.perf_counter() - trace_start_s
                    jobs.append(pool.submit(self._compile, bucket, lowered, trace_s))
                for job in jobs:
                    job.result()
        finally:
            threading.stack_size(old_stack_bytes)
        self.wall_s = time.perf_counter() - start_s
        self.num_cache_hits = self._log.num_cache_hits - num_cache_hits

    def _compile(
        self,
        bucket: Bucket,
        lowered: jax.stages.Lowered,
        trace_s: float,
    ) -> None:
        start_s = time.perf_counter()
        compiled = lowered.compile()
        compile_s = time.perf_counter() - start_s
        memory = compiled.memory_analysis()
        assert memory is not None, "every backend we run on reports memory"
        self.reports.append(
            ProgramReport(
                bucket=bucket,
                trace_s=trace_s,
                compile_s=compile_s,
                temp_bytes=memory.temp_size_in_bytes,
                alias_bytes=memory.alias_size_in_bytes,
            )
        )
        self._compiled[bucket] = compiled

    def run(
        self, bucket: Bucket, state: DeviceState, packed: np.ndarray
    ) -> tuple[DeviceState, tuple[jax.Array, ...]]:
        """Enqueues one step; `state` is consumed.

        Returns:
          The new state, and what `step_function` returns after it.

        Raises:
          UncompiledShapeError: if the bucket was not compiled.
        """
        compiled = self._compiled.get(bucket)
        if compiled is None:
            raise UncompiledShapeError(
                f"no program for {bucket} (compiled: {self.num_compiled} of "
                f"{len(self.table.buckets)} in the table)"
            )
        kv, slot_tokens, *out = compiled(
            self._model.leaves, state.kv, state.slot_tokens, packed
        )
        return DeviceState(kv=kv, slot_tokens=slot_tokens), tuple(out)
