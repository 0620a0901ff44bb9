"""The compiled programs, made ahead of time; none is made by a step.

A step runs two: its bucket's, which computes the layers, and a head, which computes
logits and draws tokens for those rows that sample, rounded up to a row edge. So the
head is never computed for other rows, and steps without a row that samples have none.
Heads of greedy rows only take the maximum. Two tiny ones replace what the device knows
of a slot: its page table, of which steps themselves change single entries, and what
adjusts its logits.

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
import numpy as np

from jserve.engine import packing, sampling
from jserve.engine.compile_cache import COMPILE_LOG, forget_module
from jserve.engine.machine import num_cpus
from jserve.engine.program_kinds import Head, Program, SlotUpdate, programs_of
from jserve.engine.program_store import ProgramStore
from jserve.records.events import ProgramStart
from jserve_models.registry import LoadedModel
from jserve_models.sharding import put
from jserve_models.steps import KvCache, StepShape
from jserve_sched.buckets.table import Bucket

_STACK_BYTES = 64 * 2**20  # deep graphs overflow the default thread stack
# On GPU, what goes into a CUDA graph: XLA's own choice, and loops. Outside a graph the
# host waits for the condition of each trip.
_COMPILER_OPTIONS = {
    "gpu": {
        "xla_gpu_enable_command_buffer": (
            "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,"
            "CONDITIONAL,WHILE,COLLECTIVES"
        )
    }
}


class UncompiledBucketError(RuntimeError):
    """A step was asked for in a bucket that is not compiled."""


class DeviceState(NamedTuple):
    """Arrays that stay on the device from step to step; programs donate them."""

    kv: KvCache
    slot_tokens: jax.Array  # [num_slots] int32, the token each slot sampled last
    tables: jax.Array  # [num_slots + 1, M] int32, KV pages; the last row is of padding
    sampler: sampling.SlotSampling  # what adjusts logits


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
        captures_logits: bool,
        store: ProgramStore | None = None,
    ):
        """Makes no program yet.

        Args:
          state: Gives shapes and placement; it and the weights may be
            `jax.ShapeDtypeStruct`, of devices that are not there, if only `lower` is
            called.
          captures_logits: Whether steps return logits and scores too.
        """
        self.reports: list[ProgramStart] = []
        self.wall_s = 0.0
        self._model = model
        self._captures_logits = captures_logits
        self._store = store
        # Without the arrays, which steps donate.
        self._abstract: tuple[Any, ...] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            (model.leaves, model.head, *state),
        )
        self._num_slots = len(state.slot_tokens)
        device: Any = next(iter(state.slot_tokens.sharding.device_set))
        self._platform: str = device.platform
        self._compiled: dict[Program, jax.stages.Compiled] = {}
        self._masks: dict[Head, jax.Array] = {}
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
        return frozenset(
            one for one in tuple(self._compiled) if isinstance(one, Bucket)
        )

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

        It takes (leaves, kv, tables, slot_tokens, packed) and returns kv, tables, and
        the rows that sample, `[num_slots, ...]`.
        """
        shape = StepShape(bucket.num_rows, bucket.num_blocks, bucket.block_tokens)

        def step(
            leaves: list[jax.Array],
            kv: KvCache,
            tables: jax.Array,
            slot_tokens: jax.Array,
            packed: jax.Array,
        ) -> tuple[KvCache, jax.Array, jax.Array]:
            inputs, tables = packing.unpack_step(packed, tables, slot_tokens, bucket)
            hidden, kv = self._model.forward(leaves, kv, inputs, shape)
            return kv, tables, hidden

        return step

    def head_function(self, head: Head) -> Callable[..., tuple[Any, ...]]:
        """Returns the pure function of a head.

        It takes (the head's weight, the rows that sample, slot_tokens, packed) and
        returns slot_tokens and tokens `[S]` int32, and with captured logits also logits
        and scores `[S, V]`. One that draws takes the sampler's state and masks as well,
        before `packed`, and returns the state second, and `Logprobs` last.
        """

        def draw(
            weight: Any, hidden: jax.Array, slot_tokens: jax.Array, *rest: Any
        ) -> tuple[Any, ...]:
            *drawing, packed = rest
            rows = packing.unpack_head(packed)
            logits = scores = self._model.logits(weight, hidden[: head.num_rows])
            if head.is_drawn:
                sampler, masks = drawing
                adjusted = sampling.adjust(logits, rows, sampler)
                masked = sampling.apply_masks(adjusted, rows, masks)
                scores = sampling.scores(masked, rows)
            tokens = sampling.argmax(scores)
            slot_tokens = slot_tokens.at[rows.slot].set(tokens, mode="drop")
            captured = (logits, scores) if self._captures_logits else ()
            if not head.is_drawn:
                return slot_tokens, tokens, *captured
            sampler = sampling.remember(sampler, rows, tokens)
            found = sampling.logprobs(logits, tokens, rows)
            return slot_tokens, sampler, tokens, *captured, found

        return draw

    def lower(self, program: Program) -> jax.stages.Lowered:
        """Traces a program for the device of weights and state."""
        function, arguments, donated, results = self._signature(program)
        function.__name__ = f"step_{program}"
        return jax.jit(
            function,
            donate_argnums=donated,
            out_shardings=results,
            keep_unused=True,
            compiler_options=_COMPILER_OPTIONS.get(self._platform),
        ).lower(*arguments)

    def compile(
        self,
        buckets: Sequence[Bucket],
        *,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Makes the programs of these buckets that are not there yet, in their order.

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
                    pool.submit(self._make, program, should_stop)
                    for program in programs_of(buckets)
                    if program not in self._compiled
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

    def _signature(
        self, program: Program
    ) -> tuple[Callable[..., Any], tuple[Any, ...], tuple[int, ...], Any]:
        """Returns a program's function, arguments, those it donates, and placements.

        Results are placed where the next program takes them: all of them whole on each
        device, but for the cache.
        """
        leaves, head, kv, slot_tokens, tables, sampler = self._abstract
        whole = slot_tokens.sharding

        def whole_array(
            *shape: int, dtype: jax.typing.DTypeLike = np.int32
        ) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

        if isinstance(program, SlotUpdate):

            def replace(state: Any, slot: jax.Array, rows: Any) -> Any:
                return jax.tree.map(lambda a, row: a.at[slot].set(row), state, rows)

            state = tables if program is SlotUpdate.TABLE else sampler
            rows = jax.tree.map(
                lambda one: whole_array(*one.shape[1:], dtype=one.dtype), state
            )
            return replace, (state, whole_array(), rows), (0,), whole
        if isinstance(program, Head):
            row = self._model.row
            hidden = whole_array(self._num_slots, *row.shape, dtype=row.dtype)
            packed = whole_array(program.num_rows, packing.HEAD_COLUMNS)
            function = self.head_function(program)
            if not program.is_drawn:
                return function, (head, hidden, slot_tokens, packed), (2,), whole
            words = sampling.mask_words(self._model.config.vocab_size)
            masks = whole_array(program.num_rows, words)
            drawing = (sampler, masks, packed)
            return function, (head, hidden, slot_tokens, *drawing), (2, 3), whole
        packed = whole_array(packing.packed_size(program, self._num_slots))
        arguments = (leaves, kv, tables, slot_tokens, packed)
        placements = (tuple(one.sharding for one in kv), whole, whole)
        return self.step_function(program), arguments, (1, 2), placements

    def _make(self, program: Program, should_stop: Callable[[], bool]) -> None:
        """Loads a program, or traces and compiles it and stores it."""
        _, arguments, _, _ = self._signature(program)
        # Its key: all in which programs of the same code differ.
        shapes = [
            (x.shape, x.dtype.name, repr(x.sharding))
            for x in jax.tree.leaves(arguments)
        ]
        attention = self._model.attention.__name__
        facts = (self._model.config, attention, program, self._captures_logits, shapes)
        key = str(program), (*facts, jax.process_index(), jax.process_count())
        store = self._store
        if should_stop():
            return
        # Load.
        start_s = time.perf_counter()
        if store is not None and (stored := store.load(*key)) is not None:
            compiled, file_bytes = stored
            load_s = time.perf_counter() - start_s
            self._compiled[program] = compiled
            times = (0.0, load_s, file_bytes, "stored", time.monotonic())
            self.reports.append(ProgramStart(str(program), *times))
            return
        # Trace.
        with self._trace_lock:
            if should_stop():
                return
            start_s = time.perf_counter()
            lowered = self.lower(program)
            trace_s = time.perf_counter() - start_s
        if should_stop():
            return
        # Compile and store.
        if store is not None and store.is_writable:
            forget_module(f"jit_step_{program}")
        start_s = time.perf_counter()
        num_hits = COMPILE_LOG.num_cache_hits_here
        compiled = lowered.compile()
        compile_s = time.perf_counter() - start_s
        end_s = time.monotonic()
        is_hit = COMPILE_LOG.num_cache_hits_here > num_hits
        saved = None if store is None or is_hit else store.save(*key, compiled)
        source = "cache" if is_hit else "compiled"
        self._compiled[program] = compiled
        self.reports.append(
            ProgramStart(str(program), trace_s, compile_s, saved, source, end_s)
        )

    def run(
        self, bucket: Bucket, state: DeviceState, packed: packing.Packed
    ) -> tuple[DeviceState, tuple[jax.Array, ...]]:
        """Enqueues one step; `state` is consumed.

        Returns:
          The new state, and what `draw` returns. Without a row that samples, and as
          long as masks are not known, the step's rows instead.

        Raises:
          UncompiledBucketError: If the bucket was not compiled.
        """
        compiled = self._compiled.get(bucket)
        if compiled is None:
            raise UncompiledBucketError(
                f"no program for {bucket}, but for {len(self.buckets)} other buckets"
            )
        kv, slot_tokens, tables, sampler = state
        for slot, table in packed.tables:
            tables = self._compiled[SlotUpdate.TABLE](tables, slot, table)
        for slot, rows in packed.samplers:
            sampler = self._compiled[SlotUpdate.SAMPLER](sampler, slot, rows)
        kv, tables, hidden = compiled(
            self._model.leaves, kv, tables, slot_tokens, packed.step
        )
        state = DeviceState(kv, slot_tokens, tables, sampler)
        if not packed.num_sampled or packed.waits:
            return state, (hidden,)
        return self.draw(state, hidden, packed)

    def draw(
        self, state: DeviceState, hidden: jax.Array, packed: packing.Packed
    ) -> tuple[DeviceState, tuple[Any, ...]]:
        """Enqueues the head of a step; `state` is consumed.

        Args:
          hidden: The step's rows.

        Returns:
          The new state, and what the head returns after it: tokens first.
        """
        head = self._head(packed.num_sampled, packed.is_drawn)
        run, rows = self._compiled[head], packed.head[: head.num_rows]
        if not head.is_drawn:
            slot_tokens, *out = run(self._model.head, hidden, state.slot_tokens, rows)
            return state._replace(slot_tokens=slot_tokens), tuple(out)
        masks = packed.masks
        masks = self._open_masks(head) if masks is None else masks[: head.num_rows]
        slot_tokens, sampler, *out = run(
            self._model.head, hidden, state.slot_tokens, state.sampler, masks, rows
        )
        return state._replace(slot_tokens=slot_tokens, sampler=sampler), tuple(out)

    def _open_masks(self, head: Head) -> Any:
        """Returns the masks of rows that may draw any token, which stay on devices."""
        if head not in self._masks:
            words = sampling.mask_words(self._model.config.vocab_size)
            masks = np.full((head.num_rows, words), -1, np.int32)
            self._masks[head] = put(masks, self._abstract[3].sharding)
        return self._masks[head]

    def _head(self, num_rows: int, is_drawn: bool) -> Head:
        """Returns the smallest head of at least `num_rows`."""
        heads = (one for one in tuple(self._compiled) if isinstance(one, Head))
        fit = (one for one in heads if one.num_rows >= num_rows)
        return min(one for one in fit if one.is_drawn == is_drawn)
