"""Engine: carries out StepPlans on the device, and nothing else.

`launch` packs a plan and enqueues its program; `PendingStep.wait` brings the sampled
tokens back. Between the two the host is free to plan the next step: sampled tokens
stay on the device in a buffer by slot, where the next step finds them.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jserve.engine.followers import WARM, Compile, Draw, Leader, Run
from jserve.engine.packing import Packed, Packer, padded_tables
from jserve.engine.program_store import ProgramStore
from jserve.engine.programs import DeviceState, Programs
from jserve.engine.sampling import Logprobs, SlotSampling, empty_slots, mask_words
from jserve.records.events import TokenLogprobs
from jserve.text.constraints import fill_masks
from jserve.timing.checkpoint import PredictorFacts, model_digest
from jserve_models.registry import LoadedModel
from jserve_models.sharding import placement, put
from jserve_sched.buckets.table import Bucket
from jserve_sched.steps.features import Span, step_features
from jserve_sched.steps.plan import StepPlan
from jserve_sched.timing.predictor import StepSample

TIMED_REPEATS = 5
_TIMED_LONG_PAGES = 16  # the longer of the contexts in the timed pass


def kv_bytes(
    model: LoadedModel, num_pages: int, page_size: int, dtype: jnp.dtype
) -> int:
    """Returns the bytes on each device of a pool's cache, discard pages included."""
    shapes = model.kv_shapes(num_pages, page_size)
    num_bytes = sum(math.prod(shape) for shape in shapes) * dtype.itemsize
    return num_bytes // model.mesh.size


def kv_page_bytes(model: LoadedModel, page_size: int, dtype: jnp.dtype) -> int:
    """Returns the bytes on each device of a page over all layers, K and V together."""
    one, two = (kv_bytes(model, count, page_size, dtype) for count in (1, 2))
    return two - one


@dataclasses.dataclass
class PendingStep:
    """A step that was launched.

    Attributes:
      transfer_s: Host seconds spent packing its argument.
      launch_s: Host seconds spent handing it to the device.
      launched_s: When it was handed over, `time.monotonic` seconds.
      num_compiling: Number of programs that were being made at that moment.
      packed: Its arguments, as long as its head waits for masks; else None.
    """

    plan: StepPlan
    transfer_s: float
    launch_s: float
    launched_s: float
    num_compiling: int
    packed: Packed | None
    _out: tuple[Any, ...]
    _num_sampled: int
    _vocab_size: int
    _has_logprobs: bool

    def wait(self) -> tuple[int, ...]:
        """Waits for the device; returns sampled tokens, decodes first, then chunks.

        Raises:
          RuntimeError: If one is not in the vocabulary: the device is broken.
        """
        if not self._num_sampled:
            jax.block_until_ready(self._out)
            return ()
        tokens = tuple(np.asarray(self._out[0])[: self._num_sampled].tolist())
        for one in (min(tokens), max(tokens)):
            if not 0 <= one < self._vocab_size:
                last = self._vocab_size - 1
                raise RuntimeError(f"the device drew token {one}, not one of 0..{last}")
        return tokens

    def logprobs(self) -> dict[str, TokenLogprobs]:
        """Returns log-probabilities by request id, of the requests that want them."""
        if not self._has_logprobs:
            return {}
        wanted = [
            (place, one.request.request_id, count)
            for place, one in enumerate(self.plan.drawing_rows)
            if (count := one.request.sampling.num_logprobs) is not None
        ]
        found: Logprobs = jax.device_get(self._out[-1])
        return {
            name: TokenLogprobs(
                float(found.drawn[place]),
                int(found.rank[place]),
                found.top_tokens[place, :count].tolist(),
                found.top[place, :count].tolist(),
            )
            for place, name, count in wanted
        }

    def captured(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns logits and scores, `[sampled rows, vocab]` each, if captured."""
        if not self._num_sampled:
            return np.empty((0, 0)), np.empty((0, 0))
        _, logits, scores = self._out[:3]
        size = self._num_sampled
        return np.asarray(logits)[:size].copy(), np.asarray(scores)[:size].copy()


class Engine:
    """Weights, KV pool and programs of one model on the devices that share it.

    Attributes:
      num_pages: KV pages in the pool.
      page_size: Tokens in one page.
      block_tokens: Tokens in one prefill block, Q.
      max_model_len: Most tokens of prompt and output together.
      max_pages_per_row: KV pages of the longest context.
      dtype: Type of the computation.
      kv_dtype: Type of the KV.
    """

    def __init__(
        self,
        *,
        model: LoadedModel,
        dtype: jnp.dtype,
        kv_dtype: jnp.dtype | None = None,
        num_slots: int,
        num_pages: int,
        page_size: int,
        block_tokens: int,
        max_model_len: int,
        captures_logits: bool = False,
        store: ProgramStore | None = None,
        leader: Leader | None = None,
    ):
        """Makes one without programs: `compile` or `warm_up` makes them.

        Args:
          leader: Sends what this engine does to the processes that follow it.
        """
        self._leader = leader
        self.model = model
        self.num_pages = num_pages
        self.page_size = page_size
        self.max_model_len = max_model_len
        self.dtype = dtype
        self.kv_dtype = kv_dtype or dtype
        self.max_pages_per_row = -(-max_model_len // page_size)
        self.block_tokens = block_tokens
        self._packer = Packer(
            num_slots=num_slots,
            num_pages=num_pages,
            page_size=page_size,
            max_pages_per_row=self.max_pages_per_row,
            vocab_size=model.config.vocab_size,
        )
        self._state = DeviceState(
            kv=model.new_kv(num_pages, page_size, self.kv_dtype),
            slot_tokens=jnp.zeros(num_slots, jnp.int32, device=placement(model.mesh)),
            tables=put(
                padded_tables(num_slots, self.max_pages_per_row, num_pages),
                placement(model.mesh),
            ),
            sampler=SlotSampling(
                *(
                    put(one, placement(model.mesh))
                    for one in empty_slots(num_slots, model.config.vocab_size)
                )
            ),
        )
        self.programs = Programs(
            model=model,
            state=self._state,
            captures_logits=captures_logits,
            store=store,
        )

    def predictor_facts(self, commit: str = "") -> PredictorFacts:
        """Returns what a predictor of this engine's step times holds for."""
        device, num_devices = jax.devices()[0], self.model.mesh.size
        kind = device.device_kind
        if num_devices > 1:
            kind += f" x {num_devices}"
        if (num_processes := jax.process_count()) > 1:
            kind += f" in {num_processes} processes"
        dtype, weights = self.dtype.name, self.model.weights
        if weights not in ("auto", dtype):
            dtype += f", weights {weights}"
        if self.kv_dtype != self.dtype:
            dtype += f", KV {self.kv_dtype.name}"
        return PredictorFacts(
            platform=device.platform,
            device_kind=kind,
            model=model_digest(self.model.config),
            dtype=dtype,
            page_size=self.page_size,
            block_tokens=self.block_tokens,
            commit=commit,
        )

    def warm_up(self, buckets: Sequence[Bucket]) -> None:
        """Makes all programs that there will be, and runs each once on padding."""
        self.compile(buckets)
        for bucket in buckets:
            self.first_run(bucket)
        self.mark_warm()

    def compile(
        self,
        buckets: Sequence[Bucket],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Makes programs, in all processes; see `Programs.compile`."""
        wait = self._leader.begin(Compile(tuple(buckets))) if self._leader else None
        self.programs.compile(buckets, should_stop=should_stop)
        if wait is not None:
            wait()

    def mark_warm(self) -> None:
        """Counts compilations from now on, in all processes: there should be none."""
        if self._leader is not None:
            self._leader.send(WARM)
        self.programs.mark_warm()

    def release_followers(self) -> None:
        """Lets the processes that follow end as this one does."""
        if self._leader is not None:
            self._leader.stop()

    def first_run(self, bucket: Bucket) -> None:
        """Runs a bucket's programs on padding, since a first run is slow."""
        self._run_padded(bucket)
        self._run_padded(bucket, is_drawn=True)

    def timed_pass(
        self, buckets: Sequence[Bucket], *, repeats: int = TIMED_REPEATS
    ) -> Iterator[StepSample]:
        """Times programs at a short context, a long decode and a long chunk.

        Nothing is written that a request could read, so steps of requests may run
        between two samples; none may be in flight while one is drawn. Buckets are
        visited in rounds, so that a slow moment does not fall on one bucket.

        Args:
          buckets: Buckets whose programs have been compiled and run.
        """
        long = min(_TIMED_LONG_PAGES, self.max_pages_per_row)
        for _ in range(repeats):
            for bucket in buckets:
                contexts = [(1, 0), (long, 0)]
                if bucket.num_blocks:
                    contexts.append((1, long - 1))
                for decode_pages, chunk_pages in contexts:
                    decode = Span(decode_pages * self.page_size - 1, 1)
                    decodes = [decode] * bucket.num_rows
                    chunks = self._made_up_chunks(bucket, chunk_pages)
                    duration_s = self._run_padded(bucket, decodes, chunks)
                    row = step_features(decodes, chunks, bucket, self.page_size)
                    yield StepSample(row, duration_s)

    def _made_up_chunks(self, bucket: Bucket, num_pages: int) -> list[Span]:
        """Returns chunks that fill the blocks of a bucket, after pages of context.

        They are one, as most often in a plan, or several as long as a context may be;
        the context is shorter if there would not be room for one.
        """
        size, num_tokens = bucket.block_tokens, bucket.num_blocks * bucket.block_tokens
        longest = max(self.max_pages_per_row * self.page_size // size, 1) * size
        start = min(num_pages * self.page_size, max(longest - num_tokens, 0))
        start -= start % size
        return [
            Span(start, min(longest - start, num_tokens - before))
            for before in range(0, num_tokens, longest - start)
        ]

    def _run_padded(
        self,
        bucket: Bucket,
        decodes: Sequence[Span] = (),
        chunks: Sequence[Span] = (),
        *,
        is_drawn: bool = False,
    ) -> float:
        """Runs a step on made-up rows, the others padding; returns its seconds."""
        packed, made_up = self._packer.pack_synthetic(
            bucket, decodes, chunks, is_drawn=is_drawn
        )
        start_s = time.perf_counter()
        jax.block_until_ready(self.run(bucket, packed, made_up))
        return time.perf_counter() - start_s

    def run(
        self, bucket: Bucket, packed: Packed, made_up: np.ndarray | None = None
    ) -> tuple[Any, ...]:
        """Enqueues a step; returns what `Programs.run` does.

        Args:
          made_up: Page tables for this step alone; None for those of requests.

        Raises:
          UncompiledBucketError: If the bucket was not compiled.
        """
        if self._leader is not None:
            self._leader.send(Run(bucket, packed, made_up))
        state, tables = self._state, self._state.tables
        if made_up is not None:
            state = state._replace(tables=put(made_up, tables.sharding))
        self._state, out = self.programs.run(bucket, state, packed)
        if made_up is not None:
            self._state = self._state._replace(tables=tables)
        self._rows = out[0]
        return out

    def draw(self, packed: Packed) -> tuple[Any, ...]:
        """Enqueues the head of the last step, which did not know its masks."""
        if self._leader is not None:
            self._leader.send(Draw(packed))
        self._state, out = self.programs.draw(self._state, self._rows, packed)
        return out

    def launch(self, plan: StepPlan, *, can_draw: bool = True) -> PendingStep:
        """Enqueues a dispatched plan; steps run in the order they are launched.

        Args:
          can_draw: Whether the tokens of all steps before are known. If they are not
            and a row has a constraint, the head waits until `draw_pending`.

        Raises:
          UncompiledBucketError: If the plan's bucket was not compiled.
        """
        start_s = time.perf_counter()
        packed = self._packer.pack(plan)
        if packed.waits and can_draw:
            packed = self._masked(packed, plan)
        packed_s = time.perf_counter()
        launched_s = time.monotonic()
        out = self.run(plan.bucket, packed)
        return PendingStep(
            plan=plan,
            transfer_s=packed_s - start_s,
            launch_s=time.perf_counter() - packed_s,
            launched_s=launched_s,
            num_compiling=self.programs.num_compiling,
            packed=packed if packed.waits else None,
            _out=out,
            _num_sampled=plan.num_sampled,
            _vocab_size=self.model.config.vocab_size,
            _has_logprobs=packed.has_logprobs,
        )

    def draw_pending(self, step: PendingStep) -> None:
        """Enqueues the head of the last step, now that all tokens before are known."""
        if step.packed is not None:
            packed = self._masked(step.packed, step.plan)
            step.packed, step._out = None, self.draw(packed)

    def _masked(self, packed: Packed, plan: StepPlan) -> Packed:
        """Returns the arguments with masks of what the plan's constraints allow."""
        words = mask_words(self.model.config.vocab_size)
        masks = np.full((len(packed.head), words), -1, np.int32)
        rows = enumerate(row.request.constraint for row in plan.drawing_rows)
        fill_masks([(place, one) for place, one in rows if one is not None], masks)
        return packed._replace(masks=masks, waits=False)
