"""Which steps to measure: a designed grid of every program, and random batches.

The one idea: a step's cost depends on how many rows it has and how long their contexts
are, never on what the tokens say. So a step to measure is two lists of numbers, and
`step_plan` gives them made-up requests that the engine cannot tell from real ones.

A *grid* step probes one program: all of its rows and blocks or just over the edge
below, its contexts alike or one long among short ones. A *random* step is a batch as a
server might plan it: every count and every context is drawn.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jserve_sched.buckets import Bucket, BucketTable
from jserve_sched.features import SCENARIOS, step_features
from jserve_sched.plan import PlanEnd, Row, StepPlan
from jserve_sched.request import Request, RequestState

_GRID_LEVELS = 4  # contexts from one page to the longest, in equal ratios
_MAX_SEQUENCES = 8  # prefilled at once in a random step
_TRIES_PER_STEP = 100  # draws before a random step is given up as nothing new


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepLimits:
    """What bounds a step.

    Attributes:
      table: the compiled shapes.
      num_slots: most requests in a step.
      max_num_batched_tokens: most token positions in a step, padded rows included.
      max_model_len: longest context, tokens.
      page_size: tokens in one KV page.
    """

    table: BucketTable
    num_slots: int
    max_num_batched_tokens: int
    max_model_len: int
    page_size: int

    def max_blocks(self, num_decodes: int) -> int:
        """Returns the most prefill blocks beside so many decodes."""
        return self.table.block_edge_beside(num_decodes, self.max_num_batched_tokens)


@dataclasses.dataclass(frozen=True)
class StepShape:
    """A step, as far as its cost goes.

    Attributes:
      decodes: cached tokens of each decode, at least 1.
      chunks: (cached tokens, tokens computed) of each prefill chunk.
    """

    decodes: tuple[int, ...]
    chunks: tuple[tuple[int, int], ...]

    @property
    def scenario(self) -> str:
        """One of `features.SCENARIOS`."""
        decode, prefill, mixed = SCENARIOS
        if not self.chunks:
            return decode
        return mixed if self.decodes else prefill

    def bucket(self, table: BucketTable) -> Bucket:
        """Returns the smallest compiled shape that holds it."""
        size = table.block_tokens
        num_blocks = sum(-(-count // size) for _, count in self.chunks)
        return table.fit(len(self.decodes), num_blocks)


def step_plan(shape: StepShape, limits: StepLimits, *, num_pages: int) -> StepPlan:
    """Returns the plan of made-up requests that has this shape.

    Rows take the pool's pages in order, each its own, and begin again at the first
    when the pool is used up: what a shared page holds does not matter here.

    Args:
      shape: the step.
      limits: what it stays within.
      num_pages: KV pages in the pool.
    """
    next_page = itertools.count()
    slots = itertools.count()

    def row(start: int, count: int, *, is_decode: bool) -> Row:
        slot = next(slots)
        pages = -(-(start + count) // limits.page_size)
        request = Request(
            request_id=f"row-{slot}",
            arrival_s=0.0,
            # A decode's own token was sampled by the step before, on the device.
            prompt_tokens=np.zeros(start if is_decode else start + count, np.int32),
            max_tokens=2,
            state=RequestState.RUNNING,
            num_pending=2 if is_decode else 1,
            slot=slot,
            pages=[next(next_page) % num_pages for _ in range(pages)],
        )
        return Row(request, start, count, samples=True)

    decodes = tuple(row(start, 1, is_decode=True) for start in shape.decodes)
    chunks = tuple(row(*chunk, is_decode=False) for chunk in shape.chunks)
    bucket = shape.bucket(limits.table)
    return StepPlan(
        step_id=0,
        bucket=bucket,
        decodes=decodes,
        chunks=chunks,
        preempted=(),
        predicted_s=0.0,
        features=step_features(decodes, chunks, bucket, limits.page_size),
        ended_by=PlanEnd.NO_WORK,
    )


def split_blocks(num_blocks: int, num_sequences: int) -> list[int]:
    """Returns how many blocks each sequence gets, as evenly as can be."""
    share, rest = divmod(num_blocks, num_sequences)
    return [share + (index < rest) for index in range(num_sequences)]


def _levels(limits: StepLimits) -> list[int]:
    """Returns page counts from 1 to the longest context's."""
    last = -(-limits.max_model_len // limits.page_size)
    return sorted({round(level) for level in np.geomspace(1, last, _GRID_LEVELS)})


def _grid_decodes(
    limits: StepLimits, count: int, pages: int, has_one_long: bool
) -> tuple[int, ...]:
    """Returns contexts of `count` decodes, the longest of them on page `pages`."""
    longest = min(pages * limits.page_size, limits.max_model_len) - 1
    others = min(limits.page_size // 2, longest) if has_one_long else longest
    return (longest, *[others] * (count - 1))


def _grid_chunks(
    limits: StepLimits, num_blocks: int, sequences: int, pages: int
) -> tuple[tuple[int, int], ...]:
    """Returns full chunks that end on page `pages`, or as early as they can."""
    size = limits.table.block_tokens
    stop = min(pages * limits.page_size, limits.max_model_len) // size * size
    counts = [blocks * size for blocks in split_blocks(num_blocks, sequences)]
    return tuple((max(stop - count, 0), count) for count in counts)


def _pairs(levels: Sequence[int], index: int) -> list[tuple[int, int]]:
    """Returns (decode pages, block pages) for the mixed steps of program `index`.

    One of the two at its least and the other at each level, and both at each level.
    The longest blocks cost by far the most, so every other program gets them beside
    the longest decodes and the rest beside the shortest.
    """
    first, last = levels[0], levels[-1]
    pairs = [(level, first) for level in levels]
    pairs += [(first, level) for level in levels[1:-1]]
    pairs += [(level, level) for level in levels[1:-1]]
    return [*pairs, (last if index % 2 else first, last)]


def designed_shapes(limits: StepLimits) -> list[StepShape]:
    """Returns the grid: every program at contexts from one page to the limit.

    Each program is probed full and just over the edge below it, with its rows alike
    and with one long among short ones, and its blocks in one sequence and in many.
    """
    table = limits.table
    levels = _levels(limits)
    shapes: list[StepShape] = []
    for index, bucket in enumerate(reversed(table.buckets)):
        row_index = table.row_edges.index(bucket.num_rows)
        block_index = table.block_edges.index(bucket.num_blocks)
        # (rows, blocks) of the program: full, and just over the edge below.
        full = (bucket.num_rows, bucket.num_blocks)
        spare = (
            table.row_edges[row_index - 1] + 1 if row_index else 1,
            table.block_edges[block_index - 1] + 1 if block_index else 0,
        )
        ways = list(itertools.product((full, spare), (False, True)))
        if not bucket.num_blocks:
            for pages, ((rows, _), has_one_long) in itertools.product(levels, ways):
                decodes = _grid_decodes(limits, rows, pages, has_one_long)
                shapes.append(StepShape(decodes, ()))
            continue
        turn = itertools.cycle(ways)
        if not row_index:  # the smallest row edge also runs prefill alone
            for pages in levels:
                for (_, blocks), is_one in (next(turn), next(turn)):
                    sequences = 1 if is_one else min(blocks, limits.num_slots)
                    chunks = _grid_chunks(limits, blocks, sequences, pages)
                    shapes.append(StepShape((), chunks))
        turn = itertools.cycle(ways)
        for decode_pages, block_pages in _pairs(levels, index):
            (rows, blocks), is_one = next(turn)
            rows = min(rows, limits.num_slots - 1)
            sequences = 1 if is_one else min(blocks, limits.num_slots - rows)
            shapes.append(
                StepShape(
                    _grid_decodes(limits, rows, decode_pages, is_one),
                    _grid_chunks(limits, blocks, sequences, block_pages),
                )
            )
    return distinct((shape for shape in shapes if _fits(shape, limits)), limits)


def _fits(shape: StepShape, limits: StepLimits) -> bool:
    bucket = shape.bucket(limits.table)
    return (
        len(shape.decodes) + len(shape.chunks) <= limits.num_slots
        and bucket.num_tokens <= limits.max_num_batched_tokens
        and all(start + count <= limits.max_model_len for start, count in shape.chunks)
    )


def random_shapes(
    limits: StepLimits,
    rng: np.random.Generator,
    *,
    num_shapes: int,
    but: Sequence[StepShape] = (),
) -> list[StepShape]:
    """Returns random batches, a third of each scenario, none like another.

    Args:
      limits: what they stay within.
      rng: draws them.
      num_shapes: how many.
      but: shapes that there are already.

    Raises:
      ValueError: if the limits allow too few different steps.
    """
    shapes = list(but)
    known = {_key(shape, limits) for shape in shapes}
    for _ in range(num_shapes * _TRIES_PER_STEP):
        if len(shapes) == len(but) + num_shapes:
            break
        shape = _random_shape(limits, rng, SCENARIOS[len(shapes) % len(SCENARIOS)])
        key = _key(shape, limits)
        if key not in known:
            known.add(key)
            shapes.append(shape)
    else:
        if len(shapes) < len(but) + num_shapes:
            raise ValueError(
                f"num_random_shapes={num_shapes} are too many: within these limits "
                f"only {len(shapes) - len(but)} different ones were found"
            )
    return shapes[len(but) :]


def _log_uniform(rng: np.random.Generator, least: int, most: int) -> int:
    """Returns an integer whose logarithm is uniform, both ends included."""
    if most <= least:
        return least
    value = np.exp(rng.uniform(np.log(least), np.log(most + 1)))
    return min(int(value), most)


def _random_shape(
    limits: StepLimits, rng: np.random.Generator, scenario: str
) -> StepShape:
    decode, prefill, _ = SCENARIOS
    has_chunks = scenario != decode
    decodes: tuple[int, ...] = ()
    if scenario != prefill:
        most = min(limits.table.max_rows, limits.num_slots - has_chunks)
        # A cap of its own, or every full step would have a long row.
        cap = _log_uniform(rng, limits.page_size, limits.max_model_len)
        decodes = tuple(
            min(_log_uniform(rng, 1, cap), limits.max_model_len - 1)
            for _ in range(_log_uniform(rng, 1, most))
        )
    if not has_chunks:
        return StepShape(decodes, ())
    return StepShape(decodes, tuple(_random_chunks(limits, rng, len(decodes))))


def _random_chunks(
    limits: StepLimits, rng: np.random.Generator, num_decodes: int
) -> Iterator[tuple[int, int]]:
    size = limits.table.block_tokens
    num_blocks = _log_uniform(rng, 1, limits.max_blocks(num_decodes))
    most = min(num_blocks, limits.num_slots - num_decodes, _MAX_SEQUENCES)
    cap = _log_uniform(rng, limits.page_size, limits.max_model_len)
    for blocks in split_blocks(num_blocks, _log_uniform(rng, 1, most)):
        # The last chunk of a prompt ends anywhere in its last block.
        count = min(blocks * size, limits.max_model_len)
        if rng.random() < 0.5:
            count -= int(rng.integers(0, min(size, count)))
        # Chunks begin where whole blocks ended.
        free_blocks = max(min(cap, limits.max_model_len) - count, 0) // size
        yield _log_uniform(rng, 1, free_blocks + 1) * size - size, count


def _key(shape: StepShape, limits: StepLimits) -> tuple[float, ...]:
    """Returns the shape's features: steps that share them would be one sample."""
    return tuple(step_plan(shape, limits, num_pages=1).features.tolist())


def distinct(shapes: Iterable[StepShape], limits: StepLimits) -> list[StepShape]:
    """Returns the shapes without those whose features are an earlier one's."""
    first: dict[tuple[float, ...], StepShape] = {}
    for shape in shapes:
        first.setdefault(_key(shape, limits), shape)
    return list(first.values())
