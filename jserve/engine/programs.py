"""One compiled program per bucket, made ahead of time; none is made by a step.

A stored executable is loaded without tracing. Otherwise the step is traced (one after
the other, since tracing holds the interpreter lock) and compiled (in parallel). JAX's
persistent cache is asked only if the store cannot keep anything: a program from there
could not be stored, and each later start would trace it again. Running a bucket without
a program raises an error; it is never compiled silently.
"""

import concurrent.futures
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jserve.engine import packing, sampling
from jserve.engine.compile_cache import COMPILE_LOG, forget_module
from jserve.engine.machine import num_cpus
from jserve.engine.program_store import ProgramStore
from jserve.records.events import ProgramStart
from jserve_models.registry import LoadedModel
from jserve_models.steps import KvCache, StepShape
from jserve_sched.buckets.table import Bucket

_HEAD_ROWS = 4
_STACK_BYTES = 64 * 2**20  # deep graphs overflow the default thread stack


class UncompiledBucketError(RuntimeError):
    """A step was asked for in a bucket that is not compiled."""


class DeviceState(NamedTuple):
    """Arrays that stay on the device from step to step; donated to each program."""

    kv: KvCache
    slot_tokens: jax.Array  # [num_slots] int32, the token each slot sampled last


class Programs:
    """The compiled step functions of one engine.

    `compile` may run in one thread while another one runs steps: a program can be run
    as soon as it is made.

    Attributes:
      reports: Times and size of each program, in the order in which they were made.
      wall_s: Seconds spent in `compile`.
    """

    def __init__(
        self,
        *,
        model: LoadedModel,
        state: DeviceState,
        max_pages_per_row: int,
        captures_logits: bool,
        store: ProgramStore | None = None,
    ):
        """Makes no program yet.

        Args:
          state: Gives shapes and placement.
          captures_logits: Whether steps return logits and scores too.
        """
        self.reports: list[ProgramStart] = []
        self.wall_s = 0.0
        self._model = model
        self._max_pages_per_row = max_pages_per_row
        self._captures_logits = captures_logits
        self._store = store
        # Without the arrays, which steps donate.
        self._abstract: tuple[Any, ...] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            (model.leaves, *state),
        )
        self._num_slots = len(state.slot_tokens)
        self._compiled: dict[Bucket, jax.stages.Compiled] = {}
        self._jobs: list[concurrent.futures.Future[None]] = []
        self._compile_lock = threading.Lock()
        self._trace_lock = threading.Lock()
        self._num_compiles_when_warm: int | None = None

    @property
    def num_compiled(self) -> int:
        """Number of programs that can run."""
        return len(self._compiled)

    @property
    def num_compiling(self) -> int:
        """Number of programs being compiled or loaded at this moment."""
        return sum(job.running() for job in self._jobs)

    @property
    def buckets(self) -> frozenset[Bucket]:
        """The buckets in which a step can run at this moment."""
        return frozenset(tuple(self._compiled))

    @property
    def num_compiles_after_warmup(self) -> int:
        """Number of compilations since `mark_warm`; anything but 0 is a bug."""
        if self._num_compiles_when_warm is None:
            return 0
        return COMPILE_LOG.num_compiles - self._num_compiles_when_warm

    def mark_warm(self) -> None:
        """Counts compilations from now on: there should be none."""
        self._num_compiles_when_warm = COMPILE_LOG.num_compiles

    def step_function(self, bucket: Bucket) -> Callable[..., tuple[Any, ...]]:
        """Returns the pure step of one bucket.

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
            step_in = packing.unpack(packed, slot_tokens, bucket)
            hidden, kv = self._model.forward(leaves, kv, step_in.inputs, shape)

            def draw(hidden: jax.Array, rows: sampling.RowSampling) -> list[jax.Array]:
                logits = self._model.logits(leaves, hidden)
                tokens = sampling.sample(logits, rows)
                if self._captures_logits:
                    return [tokens, logits, sampling.scores(logits, rows)]
                return [tokens]

            num_wanted = jnp.sum(step_in.slot < self._num_slots)
            chunk = _head_rows(bucket, len(hidden))
            tokens, *captured = _in_chunks(
                draw, (hidden, step_in.sampling), num_wanted, chunk
            )
            slot_tokens = slot_tokens.at[step_in.slot].set(tokens, mode="drop")
            return kv, slot_tokens, tokens, *captured

        return step

    def compile(
        self,
        buckets: Sequence[Bucket],
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Makes those programs that are not there yet, in the order given.

        Args:
          should_stop: Asked in any thread before a program is begun: those begun
            are finished, the others are not made.

        Raises:
          BaseException: What a compilation raised; no further one is begun.
        """
        with self._compile_lock:
            start_s = time.perf_counter()
            # The process's setting, so threads that others begin get it as well.
            old_stack_bytes = threading.stack_size(_STACK_BYTES)
            # One traces while the others compile.
            pool = concurrent.futures.ThreadPoolExecutor(num_cpus() + 1, "compile")
            try:
                self._jobs = jobs = [
                    pool.submit(self._make, bucket, should_stop)
                    for bucket in buckets
                    if bucket not in self._compiled
                ]
                for job in concurrent.futures.as_completed(jobs):
                    job.result()
            finally:
                pool.shutdown(cancel_futures=True)
                self._jobs = []
                threading.stack_size(old_stack_bytes)
                self.wall_s += time.perf_counter() - start_s
            if self._store is not None and jobs:
                self._store.prune()

    def _make(self, bucket: Bucket, should_stop: Callable[[], bool]) -> None:
        """Loads a program, or traces and compiles it and stores it."""
        size = packing.packed_size(bucket, self._num_slots, self._max_pages_per_row)
        arguments = (*self._abstract, jax.ShapeDtypeStruct((size,), np.int32))
        # Its key: all in which programs of the same code differ.
        shapes = [
            (x.shape, x.dtype.name, repr(x.sharding))
            for x in jax.tree.leaves(arguments)
        ]
        options = (self._captures_logits, self._max_pages_per_row)
        attention = self._model.attention.__name__
        key = str(bucket), (self._model.config, attention, bucket, options, shapes)
        store = self._store
        if should_stop():
            return
        # Load.
        start_s = time.perf_counter()
        if store is not None and (stored := store.load(*key)) is not None:
            compiled, file_bytes = stored
            load_s = time.perf_counter() - start_s
            self._compiled[bucket] = compiled
            facts = (str(bucket), 0.0, load_s, file_bytes, "stored", time.monotonic())
            self.reports.append(ProgramStart(*facts))
            return
        # Trace.
        with self._trace_lock:
            if should_stop():
                return
            start_s = time.perf_counter()
            step = self.step_function(bucket)
            step.__name__ = f"step_{bucket}"
            lowered = jax.jit(step, donate_argnums=(1, 2), keep_unused=True).lower(
                *arguments
            )
            trace_s = time.perf_counter() - start_s
        if should_stop():
            return
        # Compile and store.
        if store is not None and store.is_writable:
            forget_module(f"jit_step_{bucket}")
        start_s = time.perf_counter()
        num_hits = COMPILE_LOG.num_cache_hits_here
        compiled = lowered.compile()
        compile_s = time.perf_counter() - start_s
        end_s = time.monotonic()
        is_hit = COMPILE_LOG.num_cache_hits_here > num_hits
        saved = None if store is None or is_hit else store.save(*key, compiled)
        source = "cache" if is_hit else "compiled"
        self._compiled[bucket] = compiled
        self.reports.append(
            ProgramStart(str(bucket), trace_s, compile_s, saved, source, end_s)
        )

    def run(
        self, bucket: Bucket, state: DeviceState, packed: np.ndarray
    ) -> tuple[DeviceState, tuple[jax.Array, ...]]:
        """Enqueues one step; `state` is consumed.

        Returns:
          The new state, and what `step_function` returns after it.

        Raises:
          UncompiledBucketError: If the bucket was not compiled.
        """
        compiled = self._compiled.get(bucket)
        if compiled is None:
            raise UncompiledBucketError(
                f"no program for {bucket}, but for {self.num_compiled} other buckets"
            )
        kv, slot_tokens, *out = compiled(self._model.leaves, *state, packed)
        return DeviceState(kv, slot_tokens), tuple(out)


def _head_rows(bucket: Bucket, num_rows: int) -> int:
    """Returns how many of the rows that may sample the head computes at once.

    On CPU the head costs by the row, and most steps of few decodes beside blocks sample
    one row or none. It is part of the program, so that a row's logits do not depend on
    how many others sample.
    """
    if jax.default_backend() == "cpu" and bucket.num_blocks:
        return min(num_rows, _HEAD_ROWS) if bucket.num_rows <= _HEAD_ROWS else num_rows
    return num_rows


def _in_chunks(
    function: Callable[..., list[jax.Array]],
    rows: tuple[Any, ...],
    num_rows: jax.Array,
    chunk: int,
) -> list[jax.Array]:
    """Applies a function of rows to the first `num_rows`, `chunk` at a time.

    Args:
      rows: Arrays, and tuples of them, that have one axis of rows in front.

    Returns:
      What it returns, for all rows; zeros for chunks that were left out.
    """
    size = len(jax.tree.leaves(rows)[0])
    if chunk == size:
        return function(*rows)
    padding = -size % chunk
    padded = jax.tree.map(
        lambda x: jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)), rows
    )

    def part(begin: jax.Array | int) -> tuple[Any, ...]:
        found: tuple[Any, ...] = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, begin, chunk), padded
        )
        return found

    def one_chunk(index: jax.Array, out: list[jax.Array]) -> list[jax.Array]:
        begin = index * chunk
        return [
            jax.lax.dynamic_update_slice_in_dim(whole, new, begin, 0)
            for whole, new in zip(out, function(*part(begin)), strict=True)
        ]

    shapes = jax.eval_shape(function, *part(0))
    empty = [jnp.zeros((size + padding, *one.shape[1:]), one.dtype) for one in shapes]
    num_chunks = (num_rows + chunk - 1) // chunk
    return [x[:size] for x in jax.lax.fori_loop(0, num_chunks, one_chunk, empty)]
