"""One compiled program per bucket, made ahead of time; none is made by a step.

The one idea: a program comes from the cheapest place that has it. A stored
executable is loaded without tracing; else the step is lowered from shapes (one after
the other, tracing holds the interpreter lock), which the store may know; else it is
compiled, in parallel. JAX's persistent cache is asked only if the store cannot keep
anything: what comes from there could not be stored, so later starts would trace it
again and again. Running a shape that is not there raises; nothing falls back to
compiling silently.
"""

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jserve import packing, sampling
from jserve.compile_cache import forget_module
from jserve.compile_log import compile_log
from jserve.cpus import num_cpus
from jserve.program_store import ProgramStore, StoredProgram
from jserve_models.registry import LoadedModel
from jserve_models.steps import KvCache, StepShape
from jserve_sched.buckets import Bucket, BucketTable

_STACK_BYTES = 64 * 2**20  # deep graphs overflow the default thread stack
_stack_lock = threading.Lock()  # the stack size is the process's, not a thread's


class UncompiledShapeError(RuntimeError):
    """A step was asked for in a shape that is not compiled."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramReport:
    """What one program cost to make.

    Attributes:
      bucket: its shape.
      trace_s: seconds to trace and lower; 0 if it was found without.
      compile_s: seconds to compile, or to find it in a cache and load it.
      temp_bytes: scratch memory while it runs.
      alias_bytes: bytes updated in place; the KV cache must be among them.
      executable_bytes: its size on disk; None if it was not stored.
      source: whether the compiler made it, found it in JAX's persistent cache, or
        was not asked because it was stored.
    """

    bucket: Bucket
    trace_s: float
    compile_s: float
    temp_bytes: int
    alias_bytes: int
    executable_bytes: int | None
    source: Literal["compiled", "cache", "stored"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceState:
    """What stays on the device from step to step; donated to each program.

    Attributes:
      kv: keys and values.
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
      table: the shapes.
      reports: what each program cost, in the order they were made.
      wall_s: seconds spent in `compile`.
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
          table: the shapes.
          max_pages_per_row: pages in a row's table.
          captures_logits: whether each step also returns logits and scores.
          store: keeps executables from start to start.
        """
        self.table = table
        self.reports: list[ProgramReport] = []
        self.wall_s = 0.0
        self._model = model
        self._max_pages_per_row = max_pages_per_row
        self._captures_logits = captures_logits
        self._store = store
        self._leaves = _abstract(model.leaves)
        self._compiled: dict[Bucket, jax.stages.Compiled] = {}
        self._compile_lock = threading.Lock()
        self._log = compile_log()
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
        return self._log.num_compiles - self._num_compiles_when_warm

    def mark_warm(self) -> None:
        """Says that from now on nothing may compile."""
        self._num_compiles_when_warm = self._log.num_compiles

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
          buckets: the shapes.
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
            try:
                self._make(missing, abstract, should_stop)
            finally:
                self.wall_s += time.perf_counter() - start_s

    def _make(
        self,
        buckets: Sequence[Bucket],
        state: DeviceState,
        should_stop: Callable[[], bool],
    ) -> None:
        """Loads what is stored; traces the rest here and compiles it in the pool."""
        pool = concurrent.futures.ThreadPoolExecutor(
            num_cpus(), thread_name_prefix="compile"
        )
        try:
            specs = [(bucket, self._arguments(bucket, state)) for bucket in buckets]
            loads = [_submit(pool, self._load, *spec, should_stop) for spec in specs]
            jobs: list[concurrent.futures.Future[Any]] = []
            for (bucket, arguments), load in zip(specs, loads, strict=True):
                if load.result():
                    continue
                if should_stop():
                    break
                start_s = time.perf_counter()
                lowered = self._lower(bucket, arguments)
                trace_s = time.perf_counter() - start_s
                made = (bucket, arguments, lowered, trace_s)
                jobs.append(_submit(pool, self._compile, *made, should_stop))
                _raise_failure(jobs)
            for job in concurrent.futures.as_completed(jobs):
                job.result()
        finally:
            pool.shutdown(cancel_futures=True)
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
        """Returns what tells a program from others of the same model."""
        inputs = [
            (x.shape, x.dtype.name, repr(x.sharding))
            for x in jax.tree.leaves(arguments)
        ]
        options = (self._captures_logits, self._max_pages_per_row)
        return (self._model.config, bucket, options, inputs)

    def _lower(self, bucket: Bucket, arguments: tuple[Any, ...]) -> jax.stages.Lowered:
        """Traces a step, in a module of the bucket's name."""
        step = self.step_function(bucket)
        step.__name__ = f"step_{bucket}"
        # With `keep_unused` the text alone tells which argument is which.
        jitted = jax.jit(step, donate_argnums=(1, 2), keep_unused=True)
        return jitted.lower(*arguments)

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
        self._take_stored(bucket, stored, 0.0, start_s)
        return True

    def _take_stored(
        self, bucket: Bucket, stored: StoredProgram, trace_s: float, start_s: float
    ) -> None:
        self._compiled[bucket] = stored.compiled
        self._report(
            bucket,
            stored.compiled,
            trace_s=trace_s,
            compile_s=time.perf_counter() - start_s,
            executable_bytes=stored.executable_bytes,
            source="stored",
        )

    def _compile(
        self,
        bucket: Bucket,
        arguments: tuple[Any, ...],
        lowered: jax.stages.Lowered,
        trace_s: float,
        should_stop: Callable[[], bool],
    ) -> None:
        """Takes the program from the store by its text, or compiles and stores it."""
        if should_stop():
            return
        start_s = time.perf_counter()
        entry: tuple[str, object, str] | None = None
        if self._store is not None:
            text = f"{lowered.as_text()}\n{lowered.in_tree}\n{lowered.out_tree}"
            entry = str(bucket), self._signature(bucket, arguments), text
            stored = self._store.load_lowered(*entry)
            if stored is not None:
                self._take_stored(bucket, stored, trace_s, start_s)
                return
            if self._store.is_writable:
                forget_module(f"jit_step_{bucket}")
        num_hits = self._log.num_cache_hits_here
        compiled = lowered.compile()
        compile_s = time.perf_counter() - start_s
        self._compiled[bucket] = compiled
        is_hit = self._log.num_cache_hits_here > num_hits
        executable_bytes = None
        if self._store is not None and entry is not None and not is_hit:
            executable_bytes = self._store.save(*entry, compiled)
        self._report(
            bucket,
            compiled,
            trace_s=trace_s,
            compile_s=compile_s,
            executable_bytes=executable_bytes,
            source="cache" if is_hit else "compiled",
        )

    def _report(
        self, bucket: Bucket, compiled: jax.stages.Compiled, **facts: Any
    ) -> None:
        memory = compiled.memory_analysis()
        assert memory is not None, "every backend we run on reports memory"
        self.reports.append(
            ProgramReport(
                bucket=bucket,
                temp_bytes=memory.temp_size_in_bytes,
                alias_bytes=memory.alias_size_in_bytes,
                **facts,
            )
        )

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


def _submit(
    pool: concurrent.futures.ThreadPoolExecutor,
    function: Callable[..., Any],
    *args: Any,
) -> "concurrent.futures.Future[Any]":
    """Submits a job; a thread that is begun for it gets a deep stack."""
    with _stack_lock:
        old_stack_bytes = threading.stack_size(_STACK_BYTES)
        try:
            return pool.submit(function, *args)
        finally:
            threading.stack_size(old_stack_bytes)


def _raise_failure(jobs: "Sequence[concurrent.futures.Future[None]]") -> None:
    """Raises what a finished job raised, if any did."""
    for job in jobs:
        if job.done():
            job.result()
