"""The step in two programs: a backbone a bucket, and one sampler for many of them.

The one idea: the head and the sampler see only the rows that sample. Padded to a row
edge, few numbers of rows are left, so they need few programs; the price is a second
launch in each step. This measures what that gains in compile time and costs in step
time; the server keeps both in one program.
"""

import concurrent.futures
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jserve import packing, sampling
from jserve.config import EngineConfig
from jserve.engine import kv_page_bytes
from jserve.packing import Packer
from jserve.program import ProgramError
from jserve.programs import DeviceState, Programs, abstract
from jserve_models.decoder import Decoder
from jserve_models.registry import LoadedModel, load_model
from jserve_models.steps import KvCache, StepShape, new_kv
from jserve_sched.bucket_strategies import make_strategy
from jserve_sched.buckets import Bucket, BucketTable

_CONFIG = EngineConfig()
_NUM_TIMED_STEPS = 60

Step = Callable[..., tuple[Any, ...]]
_Job = tuple[Step, tuple[int, ...], tuple[Any, ...]]  # a step, what it donates, shapes


class EngineParts:
    """What the default engine is made of, for one model and one bucket strategy."""

    def __init__(self, model: str, bucket_strategy: str):
        """Loads the model.

        Raises:
          ValueError: if either is unknown.
        """
        dtype = np.dtype(np.float32)
        self.model: LoadedModel = load_model(model, seed=0, dtype=dtype)
        self.table: BucketTable = make_strategy(bucket_strategy).table(
            max_num_seqs=_CONFIG.max_num_seqs,
            max_num_batched_tokens=_CONFIG.max_num_batched_tokens,
            block_tokens=_CONFIG.block_tokens,
        )
        page_size = _CONFIG.page_size
        self.num_pages = _CONFIG.kv_cache_bytes // kv_page_bytes(
            self.model, page_size, dtype
        )
        self.max_pages_per_row = -(-self.model.config.max_model_len // page_size)
        self.state = DeviceState(
            kv=new_kv(self.model.config, self.num_pages, page_size, dtype),
            slot_tokens=jnp.zeros(_CONFIG.max_num_seqs, jnp.int32),
        )

    def packed(self, bucket: Bucket) -> np.ndarray:
        """Returns the argument of a step on made-up rows of one page."""
        packer = Packer(
            num_slots=_CONFIG.max_num_seqs,
            num_pages=self.num_pages,
            max_pages_per_row=self.max_pages_per_row,
        )
        num_block_pages = min(bucket.num_blocks, 1)
        return packer.pack_synthetic(bucket, 1, num_block_pages, _CONFIG.page_size)


class _Factorised:
    """A step as two programs; the sampler's is shared by buckets."""

    def __init__(self, parts: EngineParts):
        names = [leaf.path for leaf in Decoder(parts.model.config).leaves]
        if "head" not in names:
            raise ProgramError(
                f"model {parts.model.config.name!r} has no head of its own"
            )
        self._parts = parts
        self._head_index = names.index("head")
        leaves = list(parts.model.leaves)
        self.head = leaves[self._head_index]
        # With the identity for a head, the model's logits are its hidden state.
        leaves[self._head_index] = jnp.eye(self.head.shape[0], dtype=self.head.dtype)
        self.leaves = leaves

    def num_logit_rows(self, bucket: Bucket) -> int:
        """Returns the rows that sample, padded to a row edge."""
        num_rows = min(bucket.num_rows + bucket.num_blocks, _CONFIG.max_num_seqs)
        return self._parts.table.fit(num_rows, 0).num_rows

    def backbone(self, bucket: Bucket) -> Step:
        """Returns all but the head and the sampler."""
        shape = StepShape(bucket.num_rows, bucket.num_blocks, bucket.block_tokens)
        num_rows = self.num_logit_rows(bucket)

        def step(
            leaves: list[jax.Array],
            kv: KvCache,
            slot_tokens: jax.Array,
            packed: jax.Array,
        ) -> tuple[Any, ...]:
            step_in = packing.unpack(packed, slot_tokens, bucket)
            hidden, kv = self._parts.model.forward(leaves, kv, step_in.inputs, shape)
            num_padding = num_rows - hidden.shape[0]

            def padded(x: jax.Array) -> jax.Array:
                return jnp.pad(x, [(0, num_padding)] + [(0, 0)] * (x.ndim - 1))

            target = jnp.pad(
                step_in.target,
                (0, num_padding),
                constant_values=slot_tokens.shape[0],
            )
            return kv, padded(hidden), jax.tree.map(padded, step_in.sampling), target

        return step

    @staticmethod
    def sampler(
        head: jax.Array,
        slot_tokens: jax.Array,
        hidden: jax.Array,
        rows: sampling.RowSampling,
        target: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns what each slot sampled last, and the tokens."""
        logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
        tokens = sampling.sample(logits, rows)
        return slot_tokens.at[target].set(tokens, mode="drop"), tokens


def _compile_all(
    jobs: Sequence[_Job],
) -> list[jax.stages.Compiled]:
    """Traces here, compiles in a pool, as the server does."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        made = [
            pool.submit(jax.jit(step, donate_argnums=donated).lower(*arguments).compile)
            for step, donated, arguments in jobs
        ]
        return [one.result() for one in made]


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


class _Form:
    """The jobs of one form of the step, and how to run it once compiled."""

    def __init__(self, parts: EngineParts, buckets: Sequence[Bucket], kind: str):
        self._factors = _Factorised(parts)
        self._leaves = parts.model.leaves if kind == "whole" else self._factors.leaves
        self._is_whole = kind == "whole"
        state = abstract(parts.state)
        programs = Programs(
            model=parts.model,
            table=parts.table,
            max_pages_per_row=parts.max_pages_per_row,
            captures_logits=False,
        )
        jobs: list[_Job] = []
        samplers: dict[int, tuple[Any, ...]] = {}
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        for bucket in buckets:
            arguments = (
                _shapes(self._leaves),
                *(state.kv, state.slot_tokens),
                _shapes(parts.packed(bucket)),
            )
            if self._is_whole:
                jobs.append((programs.step_function(bucket), (1, 2), arguments))
                continue
            step = self._factors.backbone(bucket)
            jobs.append((step, (1,), arguments))
            num_rows = self._factors.num_logit_rows(bucket)
            if num_rows not in samplers:
                _, *rest = jax.eval_shape(step, *arguments)
                head = _shapes(self._factors.head)
                samplers[num_rows] = (head, state.slot_tokens, *rest)
        jobs += [(self._factors.sampler, (1,), one) for one in samplers.values()]
        made = _compile_all(jobs)
        self.wall_s = time.perf_counter() - start_s
        self.cpu_s = time.process_time() - start_cpu_s
        self.num_programs = len(made)
        self._steps = dict(zip(buckets, made, strict=False))
        self._samplers = dict(zip(samplers, made[len(buckets) :], strict=True))

    def run(
        self, bucket: Bucket, state: DeviceState, packed: np.ndarray
    ) -> tuple[DeviceState, float]:
        """Runs a step; returns the new state and the seconds it took."""
        start_s = time.perf_counter()
        kv, *rest = self._steps[bucket](
            self._leaves, state.kv, state.slot_tokens, packed
        )
        if not self._is_whole:
            sampler = self._samplers[self._factors.num_logit_rows(bucket)]
            rest = sampler(self._factors.head, state.slot_tokens, *rest)
        slot_tokens, tokens = rest
        jax.block_until_ready(tokens)
        seconds = time.perf_counter() - start_s
        return DeviceState(kv=kv, slot_tokens=slot_tokens), seconds


def measure_factors(kind: str, parts: EngineParts) -> dict[str, Any]:
    """Compiles every program, whole or factorised; returns what it took."""
    form = _Form(parts, parts.table.buckets, kind)
    return {
        "wall_s": form.wall_s,
        "cpu_s": form.cpu_s,
        "num_programs": form.num_programs,
    }


def measure_steps(parts: EngineParts) -> dict[str, Any]:
    """Times steps of the corners of the table, whole and factorised in turns."""
    table = parts.table
    buckets = sorted(
        table.fit(rows, blocks)
        for rows in (1, table.max_rows - 1)
        for blocks in (0, 1, table.max_blocks)
    )
    forms = {kind: _Form(parts, buckets, kind) for kind in ("whole", "factorised")}
    state = parts.state
    found: dict[str, Any] = {}
    for bucket in buckets:
        packed = parts.packed(bucket)
        times_s: dict[str, list[float]] = {kind: [] for kind in forms}
        for _ in range(_NUM_TIMED_STEPS):
            for kind, form in forms.items():
                state, seconds = form.run(bucket, state, packed)
                times_s[kind].append(seconds)
        pairs = zip(times_s["factorised"], times_s["whole"], strict=True)
        found[str(bucket)] = {
            **{f"{kind}_ms": 1e3 * min(times) for kind, times in times_s.items()},
            "ratio_p50": statistics.median(split / whole for split, whole in pairs),
        }
    return {
        "wall_s": sum(form.wall_s for form in forms.values()),
        "cpu_s": sum(form.cpu_s for form in forms.values()),
        "num_programs": sum(form.num_programs for form in forms.values()),
        "steps": found,
    }
