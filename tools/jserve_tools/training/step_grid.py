"""The steps to measure, and the order of the measurements.

A *grid* step probes one program at a given longest context. A *random* step is a batch
as a server might plan it: every count and every context is drawn. A step's cost depends
on the number of its rows and on their contexts, not on the tokens themselves, so its
requests are synthetic.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jserve.config import EngineConfig
from jserve_sched.buckets.table import BucketTable
from jserve_sched.requests.request import Request, RequestState
from jserve_sched.steps.features import (
    PURE_DECODE,
    PURE_PREFILL,
    SCENARIOS,
    step_features,
)
from jserve_sched.steps.plan import PlanEnd, Row, StepPlan

if TYPE_CHECKING:
    from jserve.engine.engine import Engine

_GRID_LEVELS = 4  # contexts from one page to the longest, in equal ratios
_MAX_SEQUENCES = 8  # prefilled at once in a step
_TRIES_PER_STEP = 100  # draws before the search for a new random step ends


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileLimits:
    """Limits of a step: the compiled buckets, and limits as in `EngineConfig`.

    Attributes:
      table: Table of the compiled buckets.
      num_pages: Number of KV pages in the pool.
    """

    table: BucketTable
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    page_size: int
    num_pages: int

    @classmethod
    def of(
        cls, engine: "Engine", config: EngineConfig, table: BucketTable
    ) -> "ProfileLimits":
        """Returns the limits of an engine, of the sizes of its device."""
        return cls(
            table=table,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_model_len=engine.max_model_len,
            page_size=engine.page_size,
            num_pages=engine.num_pages,
        )


def step_plan(
    limits: ProfileLimits, decodes: Sequence[int], chunks: Sequence[tuple[int, int]]
) -> StepPlan:
    """Returns a plan of synthetic requests, in the smallest bucket that holds them.

    Rows take the pool's pages in order, and begin again at the first page when the pool
    is used up, since the content of a page does not matter here.

    Args:
      decodes: Cached tokens of each decode, at least 1.
      chunks: Cached tokens and computed tokens of each prefill chunk.
    """
    next_page, slots = itertools.count(), itertools.count()

    def row(start: int, count: int, *, is_decode: bool) -> Row:
        slot = next(slots)
        pages = -(-(start + count) // limits.page_size)
        request = Request(
            request_id=f"row-{slot}",
            arrival_s=0.0,
            # The token of a decode was sampled by the step before, on the device.
            prompt_tokens=np.zeros(start if is_decode else start + count, np.int32),
            max_tokens=2,
            state=RequestState.RUNNING,
            num_pending_tokens=2 if is_decode else 1,
            slot=slot,
            pages=[next(next_page) % limits.num_pages for _ in range(pages)],
        )
        return Row(request, start, count, draws_token=True)

    decode_rows = tuple(row(start, 1, is_decode=True) for start in decodes)
    chunk_rows = tuple(row(*chunk, is_decode=False) for chunk in chunks)
    num_blocks = sum(-(-count // limits.table.block_tokens) for _, count in chunks)
    bucket = limits.table.fit(len(decodes), num_blocks)
    return StepPlan(
        step_id=0,
        bucket=bucket,
        decodes=decode_rows,
        chunks=chunk_rows,
        preempted=(),
        predicted_s=0.0,
        features=step_features(decode_rows, chunk_rows, bucket, limits.page_size),
        ended_by=PlanEnd.NO_WORK,
    )


def profile_plans(
    limits: ProfileLimits, rng: np.random.Generator, *, num_random: int
) -> list[StepPlan]:
    """Returns the steps to measure, no two with equal features.

    The grid comes first: every program, full and just over the edge below it, at
    contexts from one page to the limit. Then come random batches, a third of each
    scenario.

    Raises:
      ValueError: If the limits allow too few different steps.
    """
    table = limits.table
    plans: dict[tuple[float, ...], StepPlan] = {}

    def add(num_decodes: int, num_blocks: int, caps: tuple[int, int]) -> None:
        plan = _draw(limits, rng, num_decodes, num_blocks, caps)
        if plan.bucket.num_tokens <= limits.max_num_batched_tokens:
            # Steps with equal features would be one sample.
            plans.setdefault(tuple(plan.features.tolist()), plan)

    # The grid.
    levels = np.geomspace(limits.page_size, limits.max_model_len, _GRID_LEVELS)
    contexts = [round(level) for level in levels]
    for bucket in reversed(table.buckets):
        rows, blocks = bucket.num_rows, bucket.num_blocks
        row_edges = table.prefill_row_edges if blocks else table.row_edges
        i, j = row_edges.index(rows), table.block_edges.index(blocks)
        spare_rows = row_edges[i - 1] + 1 if i else 1
        spare_blocks = table.block_edges[j - 1] + 1 if j else 0
        for cap in contexts:
            other = int(rng.choice(contexts))
            add(rows, blocks, (cap, other))
            add(spare_rows, spare_blocks, (cap, other))
            if blocks:
                add(rows, blocks, (other, cap))
            if blocks and table.fit(0, blocks).num_rows == rows:  # prefill alone
                add(0, blocks, (other, cap))

    # Random batches.
    num_grid = len(plans)
    for _ in range(num_random * _TRIES_PER_STEP):
        if len(plans) == num_grid + num_random:
            break
        scenario = len(plans) % len(SCENARIOS)
        rows = blocks = 0
        if scenario != PURE_PREFILL:
            rows = log_uniform(rng, 1, min(table.max_rows, limits.max_num_seqs))
        if scenario != PURE_DECODE:
            room = table.block_edge_beside(rows, limits.max_num_batched_tokens)
            blocks = log_uniform(rng, 1, room)
        # Each step draws new caps; with fixed caps every full step would have a long
        # row.
        caps = [log_uniform(rng, 1, limits.max_model_len) for _ in range(2)]
        add(rows, blocks, (caps[0], caps[1]))
    if len(plans) < num_grid + num_random:
        raise ValueError(
            f"num_random_shapes={num_random} is too many: within these limits only "
            f"{len(plans) - num_grid} different ones were found"
        )
    return list(plans.values())


def log_uniform(rng: np.random.Generator, least: int, most: int) -> int:
    """Returns an integer whose logarithm is uniform, both ends included."""
    if most <= least:
        return least
    return min(int(np.exp(rng.uniform(np.log(least), np.log(most + 1)))), most)


def _draw(
    limits: ProfileLimits,
    rng: np.random.Generator,
    num_decodes: int,
    num_blocks: int,
    caps: tuple[int, int],
) -> StepPlan:
    """Returns a step whose longest decode and first chunk end near the caps.

    Half of the steps have decodes of equal length, the others one long decode and the
    rest drawn below it. There are fewer decodes if chunks need their slots. Blocks are
    divided among one or more sequences. `caps` are the tokens of both contexts.
    """
    longest, size = limits.max_model_len, limits.table.block_tokens
    # Decodes.
    num_decodes = min(num_decodes, limits.max_num_seqs - bool(num_blocks))
    most = min(max(caps[0], 2), longest) - 1
    decodes = [most] * num_decodes
    if rng.random() < 0.5:
        decodes[1:] = [log_uniform(rng, 1, most) for _ in decodes[1:]]
    # Chunks.
    chunks = []
    slots = min(num_blocks, limits.max_num_seqs - num_decodes, _MAX_SEQUENCES)
    num_chunks = log_uniform(rng, min(num_blocks, 1), slots)
    for index in range(num_chunks):
        blocks = (num_blocks + index) // num_chunks  # as evenly as can be
        # The last chunk of a prompt ends anywhere in its last block.
        count = min(blocks * size, longest)
        if rng.random() < 0.5:
            count -= int(rng.integers(0, min(size, count)))
        # Chunks begin where whole blocks ended.
        free_blocks = max(min(caps[1], longest) - count, 0) // size
        start = log_uniform(rng, 1, free_blocks + 1) - 1 if index else free_blocks
        chunks.append((start * size, count))
    return step_plan(limits, decodes, chunks)


def time_rounds(
    time_step: Callable[[int], float],
    num_steps: int,
    *,
    rounds: int,
    warmup_rounds: int,
    rng: np.random.Generator,
    max_s: float,
) -> np.ndarray:
    """Returns durations `[rounds, num_steps]` in seconds, measured in shuffled rounds.

    A machine drifts, and other programs disturb it in bursts. Each round runs every
    step once, in a new random order, so that a slow moment hits steps at random.

    Args:
      time_step: Runs the step of an index once; returns its seconds.
      warmup_rounds: Number of rounds before the others, which are discarded.
      max_s: Seconds after which no further round begins; one round is always kept.
    """
    start_s = time.monotonic()
    kept: list[np.ndarray] = []
    for index in range(warmup_rounds + rounds):
        if kept and time.monotonic() - start_s >= max_s:
            break
        durations_s = np.empty(num_steps)
        for step in rng.permutation(num_steps).tolist():
            durations_s[step] = time_step(step)
        if index >= warmup_rounds:
            kept.append(durations_s)
    return np.stack(kept)
