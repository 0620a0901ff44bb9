"""One compiled program per bucket, made ahead of time; none is made by a step.

A stored executable is loaded without tracing. Otherwise the step is lowered from shapes
(one after the other, since tracing holds the interpreter lock) and compiled, in
parallel. JAX's persistent cache is asked only if the store cannot keep anything: what
comes from there could not be stored, so each later start would trace it again. Running
a bucket that is not there raises; nothing falls back to compiling silently.
"""

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jserve import packing, sampling
from jserve.compile_cache import forget_module
from jserve.compile_log import COMPILE_LOG
from jserve.events import ProgramStart
from jserve.machine import num_cpus
from jserve.program_store import ProgramStore
from jserve_models.registry import LoadedModel
from jserve_models.steps import KvCache, StepShape
from jserve_sched.buckets import Bucket, BucketTable

_STACK_BYTES = 64 * 2**20  # deep graphs overflow the default thread stack


class UncompiledShapeError(RuntimeError):
    """A step was asked for in a bucket that is not compiled."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceState:
    """What stays on the device from step to step; donated to each program.

    Attributes:
      kv: Keys and values.
      slot_tokens: `[num_slots]` int32, the token each slot sampled last.
    """

    kv: KvCache
    slot_tokens: jax.Array


def abstract_state(state: DeviceState) -> DeviceState:
    """Returns shapes and placement alone, which no step can donate away."""
    kv, slot_tokens = _abstract((state.kv, state.slot_tokens))
    return DeviceState(kv=kv, slot_tokens=slot_tokens)


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )


class Programs:
    """The compiled step functions of one engine.

    `compile` may run in one thread while another one runs steps: each program is
    there for `has` and `run` from the moment it is made.

    Attributes:
      table: The buckets.
      reports: What each program cost, in the order they were made.
      wall_s: Seconds spent in `compile`.
    """

    def __init__(
        self,
        *,
        model: LoadedModel,
        table: BucketTable,
        max_pages_per_row: int,
        captures_logits: bool,
        store: ProgramStore | None = None,
    ):
        """Makes no program yet.

        Args:
          model: the model.
          table: the buckets.
          max_pages_per_row: pages in a row's table.
          captures_logits: whether each step also returns logits and scores.
          store: keeps executables from start to start.
        """
        self.table = table
        self.reports: list[ProgramStart] = []
        self.wall_s = 0.0
        self._model = model
        self._max_pages_per_row = max_pages_per_row
        self._captures_logits = captures_logits
        self._store = store
        self._leaves = _abstract(model.leaves)
        self._compiled: dict[Bucket, jax.stages.Compiled] = {}
        self._compile_lock = threading.Lock()
        self._num_compiles_when_warm: int | None = None

    @property
    def num_compiled(self) -> int:
        """Programs ready to run."""
        return len(self._compiled)

    @property
    def buckets(self) -> frozenset[Bucket]:
        """The shapes that can run at this moment."""
        return frozenset(tuple(self._compiled))

    @property
    def num_compiles_after_warmup(self) -> int:
        """Compilations in this process since `mark_warm`; anything but 0 is a bug."""
        if self._num_compiles_when_warm is None:
            return 0
        return COMPILE_LOG.num_compiles - self._num_compiles_when_warm

    def mark_warm(self) -> None:
        """Says that from now on nothing may compile."""
        self._num_compiles_when_warm = COMPILE_LOG.num_compiles

    def has(self, bucket: Bucket) -> bool:
        """Returns whether a step of this shape can run."""
        return bucket in self._compiled

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

    def compile(
        self,
        buckets: Sequence[Bucket],
        state: DeviceState,
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Makes those programs that are not there yet, in the order given.

        Args:
          buckets: which.
          state: gives shapes and placement; not touched. A thread that does not run
            the steps must bring an `abstract_state`: the real one is donated away
            under its feet.
          should_stop: asked in any thread before a program is begun: those begun
            are finished, the others are not made.

        Raises:
          BaseException: what a compilation raised; no further one is begun.
        """
        abstract = abstract_state(state)
        with self._compile_lock:
            start_s = time.perf_counter()
            missing = [bucket for bucket in buckets if not self.has(bucket)]
            # The process's setting, so threads that others begin get it as well.
            old_stack_bytes = threading.stack_size(_STACK_BYTES)
            pool = concurrent.futures.ThreadPoolExecutor(num_cpus(), "compile")
            try:
                self._make(pool, missing, abstract, should_stop)
            finally:
                pool.shutdown(cancel_futures=True)
                threading.stack_size(old_stack_bytes)
                self.wall_s += time.perf_counter() - start_s

    def _make(
        self,
        pool: concurrent.futures.Executor,
        buckets: Sequence[Bucket],
        state: DeviceState,
        should_stop: Callable[[], bool],
    ) -> None:
        """Loads what is stored; traces the rest here and compiles it in the pool."""
        specs = [(bucket, self._arguments(bucket, state)) for bucket in buckets]
        loads = [pool.submit(self._load, *spec, should_stop) for spec in specs]
        jobs: list[concurrent.futures.Future[None]] = []
        for (bucket, arguments), load in zip(specs, loads, strict=True):
            if load.result():
                continue
            if should_stop():
                break
            start_s = time.perf_counter()
            lowered = self._lower(bucket, arguments)
            trace_s = time.perf_counter() - start_s
            made = (bucket, arguments, lowered, trace_s, should_stop)
            jobs.append(pool.submit(self._compile, *made))
            for job in jobs:
                if job.done():
                    job.result()  # one that failed ends it all
        for job in concurrent.futures.as_completed(jobs):
            job.result()
        if self._store is not None and jobs:
            self._store.prune()

    def _arguments(self, bucket: Bucket, state: DeviceState) -> tuple[Any, ...]:
        """Returns the shapes of what a program takes."""
        size = packing.packed_size(
            bucket, state.slot_tokens.shape[0], self._max_pages_per_row
        )
        packed = jax.ShapeDtypeStruct((size,), np.int32)
        return self._leaves, state.kv, state.slot_tokens, packed

    def _signature(self, bucket: Bucket, arguments: tuple[Any, ...]) -> object:
        """Returns what tells a program from others of the same code."""
        inputs = [
            (x.shape, x.dtype.name, repr(x.sharding))
            for x in jax.tree.leaves(arguments)
        ]
        options = (self._captures_logits, self._max_pages_per_row)
        return (self._model.config, bucket, options, inputs)

    def _load(
        self,
        bucket: Bucket,
        arguments: tuple[Any, ...],
        should_stop: Callable[[], bool],
    ) -> bool:
        """Takes the program from the store; returns whether it was there."""
        if self._store is None or should_stop():
            return False
        start_s = time.perf_counter()
        stored = self._store.load(str(bucket), self._signature(bucket, arguments))
        if stored is None:
            return False
        compiled, size = stored
        compile_s = time.perf_counter() - start_s
        report = ProgramStart(str(bucket), 0.0, compile_s, size, "stored")
        self._take(bucket, compiled, report)
        return True

    def _lower(self, bucket: Bucket, arguments: tuple[Any, ...]) -> jax.stages.Lowered:
        """Traces a step, in a module of the bucket's name."""
        step = self.step_function(bucket)
        step.__name__ = f"step_{bucket}"
        return jax.jit(step, donate_argnums=(1, 2), keep_unused=True).lower(*arguments)

    def _compile(
        self,
        bucket: Bucket,
        arguments: tuple[Any, ...],
        lowered: jax.stages.Lowered,
        trace_s: float,
        should_stop: Callable[[], bool],
    ) -> None:
        """Compiles a program and stores it."""
        if should_stop():
            return
        store = self._store
        if store is not None and store.is_writable:
            forget_module(f"jit_step_{bucket}")
        start_s = time.perf_counter()
        num_hits = COMPILE_LOG.num_cache_hits_here
        compiled = lowered.compile()
        compile_s = time.perf_counter() - start_s
        is_hit = COMPILE_LOG.num_cache_hits_here > num_hits
        size = None
        if store is not None and not is_hit:
            signature = self._signature(bucket, arguments)
            size = store.save(str(bucket), signature, compiled)
        source = "cache" if is_hit else "compiled"
        report = ProgramStart(str(bucket), trace_s, compile_s, size, source)
        self._take(bucket, compiled, report)

    def _take(
        self, bucket: Bucket, compiled: jax.stages.Compiled, report: ProgramStart
    ) -> None:
        self._compiled[bucket] = compiled
        self.reports.append(report)

    def memory(self, bucket: Bucket) -> Any:
        """Returns what a program takes; the KV cache must be updated in place."""
        return self._compiled[bucket].memory_analysis()

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
