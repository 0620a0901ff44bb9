"""Step demand: the rows and blocks that steps need, whatever table they ran in.

A step that did all the prefill that was waiting had a demand of exactly that, and
rounds *up* to an edge. A step that left work over ran on the largest edge that its
limits allowed. Its demand is as much as fits within the limits, which lies between that
edge and the next, and it rounds *down*: to a smaller step, and more of them. This
brings time limits into the edges: the best edge for such a step is just below its
limit.

`N` is the number of kinds of steps in a demand.
"""

import dataclasses
import operator
from collections.abc import Iterable, Sequence

import numpy as np

from jserve_sched.buckets.table import BucketTable
from jserve_sched.steps import features
from jserve_sched.steps.record import StepRecord
from jserve_sched.timing.predictor import Predict

TbtBudgets = Sequence[tuple[float, float]]
"""TBT objective in seconds, and share of requests, of each service class."""

# Fitted with 30 programs to the earlier half of a server's log, whose later half was
# far busier, a tenth made the earlier steps 0.3 % longer and the later ones 9 %
# shorter.
PRIOR_SHARE = 0.1

_COLUMNS = ("rows", "blocks", "is_limited", "decode_pages", "block_pages")
_FACTS = operator.attrgetter(  # of a record
    *("num_blocks", "leaves_work", "used_rows", "used_blocks"),
    *("decode_pages", "block_pages"),
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StepDemand:
    """Kinds of steps, and the number of each; all arrays are `[N]`.

    Attributes:
      is_limited: Whether a limit ended the step, so that it rounds down.
      decode_pages: KV pages that the decodes read together.
      block_pages: KV pages that the prefill blocks read together.
      weight: Number of such steps, above 0.
    """

    rows: np.ndarray
    blocks: np.ndarray
    is_limited: np.ndarray
    decode_pages: np.ndarray
    block_pages: np.ndarray
    weight: np.ndarray

    @property
    def num_steps(self) -> float:
        """Number of steps described."""
        return float(np.sum(self.weight))

    def scaled(self, num_steps: float) -> "StepDemand":
        """Returns the same mixture of `num_steps` steps."""
        return dataclasses.replace(
            self, weight=self.weight * (num_steps / self.num_steps)
        )

    def where(self, mask: np.ndarray) -> "StepDemand":
        """Returns the kinds where `mask` `[N]` is true."""
        return StepDemand(**{name: one[mask] for name, one in vars(self).items()})


def merge(demands: Sequence[StepDemand]) -> StepDemand:
    """Returns all steps of several demands; steps of one kind become one entry."""
    keys = np.concatenate(
        [np.stack([getattr(one, name) for name in _COLUMNS], 1) for one in demands]
    ).astype(np.int64)
    weight = np.concatenate([one.weight for one in demands])
    kinds, places = np.unique(keys, axis=0, return_inverse=True)
    columns = dict(zip(_COLUMNS, kinds.T, strict=True))
    columns["is_limited"] = columns["is_limited"].astype(bool)
    return StepDemand(
        **columns, weight=np.bincount(places.reshape(-1), weight, len(kinds))
    )


def prior_demand(max_rows: int, max_blocks: int) -> StepDemand:
    """Returns the demand of unknown traffic, with a total weight of 1.

    Half of the steps are decode only, half have prefill. Counts of rows and blocks are
    log-uniform, so that no size has more weight than its double. Contexts are short.
    """
    rows, blocks = np.meshgrid(np.arange(max_rows + 1), np.arange(max_blocks + 1))
    # There is no empty step, and no prefill of a request without a slot.
    can_occur = (rows + blocks > 0) & ((rows < max_rows) | (blocks == 0))
    rows, blocks = rows[can_occur], blocks[can_occur]
    weight = 1.0 / ((1.0 + rows) * np.maximum(blocks, 1))
    for part in (blocks == 0, blocks > 0):
        weight[part] *= 0.5 / np.sum(weight[part])
    return StepDemand(
        rows=rows,
        blocks=blocks,
        is_limited=np.zeros(len(rows), bool),
        decode_pages=rows,
        block_pages=blocks,
        weight=weight,
    )


def with_prior(
    demand: StepDemand, table: BucketTable, prior_share: float = PRIOR_SHARE
) -> StepDemand:
    """Returns a demand with a share of its weight moved to buckets of every size.

    Edges fitted only to recorded steps have none above these: 13 rows, where 12 were
    the most so far, would be padded to the largest edge. The share is taken separately
    from steps with and without prefill, so that their proportion stays.
    """
    if not prior_share:
        return demand
    prior = prior_demand(table.max_rows, table.max_blocks)
    parts = [demand.scaled((1.0 - prior_share) * demand.num_steps)]
    for has_prefill in (False, True):
        seen = float(np.sum(demand.weight[(demand.blocks > 0) == has_prefill]))
        if seen:
            expected = prior.where((prior.blocks > 0) == has_prefill)
            parts.append(expected.scaled(prior_share * seen))
    return merge(parts)


def bucket_features(
    num_rows: np.ndarray,
    num_blocks: np.ndarray,
    *,
    used_rows: np.ndarray | float,
    used_blocks: np.ndarray | float,
    decode_pages: np.ndarray | float,
    block_pages: np.ndarray | float,
    page_size: int,
    block_tokens: int,
) -> np.ndarray:
    """Returns the features `[N, F]` of steps of which only buckets are known.

    Decodes are taken to stand at the end of their last page, and blocks to belong
    to as few chunks as possible, all with the same context. `num_rows` and `num_blocks`
    are `[N]`; the others are `[N]`, or one number for all.
    """
    matrix = np.zeros((len(num_rows), features.NUM_FEATURES))
    used_rows, used_blocks = np.asarray(used_rows), np.asarray(used_blocks)
    decode_pages, block_pages = np.asarray(decode_pages), np.asarray(block_pages)
    context = np.maximum(decode_pages * page_size - used_rows, 0)
    tokens = used_blocks * block_tokens
    pages_each = np.maximum(block_pages / np.maximum(used_blocks, 1), 1)
    stop = np.ceil(pages_each) * page_size
    num_chunks = np.ceil(tokens / stop)
    chunk = tokens / np.maximum(num_chunks, 1)
    matrix[:, features.PREFILL_WORK] = tokens * stop
    matrix[:, features.CHUNK_SQUARES] = tokens * chunk
    matrix[:, features.CACHED_TOKENS] = context + num_chunks * stop - tokens
    matrix[:, features.NUM_DECODES] = used_rows
    matrix[:, features.DECODE_CONTEXT] = context
    matrix[:, features.PREFILL_TOKENS] = tokens
    matrix[:, features.LARGEST_CHUNK] = chunk
    matrix[:, features.NUM_ROWS] = num_rows
    matrix[:, features.NUM_BLOCKS] = num_blocks
    matrix[:, features.DECODE_PAGES] = decode_pages
    matrix[:, features.BLOCK_PAGES] = block_pages
    matrix[:, features.LONGEST_DECODE] = np.ceil(
        decode_pages / np.maximum(used_rows, 1)
    )
    return matrix


def demand_from_steps(
    steps: Iterable[StepRecord],
    table: BucketTable,
    *,
    tbt_budgets: TbtBudgets,
    step_s: Predict,
    page_size: int,
) -> StepDemand:
    """Returns the demand of steps that ran in a table's buckets.

    A step with work left over is limited if its blocks end at an edge; otherwise the
    policy planned another count, and the step rounds up. A limited step on edge e, with
    f the next edge, has a demand of as many blocks as its limit allows: the largest b
    with `step_s(rows, b) <= tbt_s` of each class for which it lies in e .. f-1, by the
    shares of these classes. If there is no such class, every count in e .. f-1 has the
    same weight. On the last edge the demand is that edge.

    Raises:
      ValueError: If there are no steps.
    """
    found = np.array([_FACTS(step) for step in steps], np.int64)
    if not found.size:
        raise ValueError("a demand needs at least one step")
    num_blocks, leaves_work, rows, blocks, decode_pages, block_pages = found.T
    is_limited = (leaves_work > 0) & (blocks == num_blocks)
    is_limited &= num_blocks < table.max_blocks
    single = StepDemand(
        rows=rows,
        blocks=blocks,
        is_limited=is_limited,
        decode_pages=decode_pages,
        block_pages=block_pages,
        weight=np.ones(len(found)),
    )
    demand = merge([single])
    if not np.any(is_limited):
        return demand
    limited = demand.where(demand.is_limited)
    wanted = _spread(limited, tbt_budgets, step_s, table, page_size)
    return merge([demand.where(~demand.is_limited), wanted])


def _spread(
    limited: StepDemand,
    tbt_budgets: TbtBudgets,
    step_s: Predict,
    table: BucketTable,
    page_size: int,
) -> StepDemand:
    """Returns limited steps, recorded on edges, with their demand of blocks."""
    # List every count that a step may demand, and the next edge, which may still fit.
    edges, row_edges = np.array(table.block_edges), np.array(table.prefill_row_edges)
    after = edges[np.searchsorted(edges, limited.blocks, side="right")]
    num_counts = after - limited.blocks + 1
    kind = np.repeat(np.arange(len(num_counts)), num_counts)
    first = np.repeat(np.cumsum(num_counts) - num_counts, num_counts)
    blocks = limited.blocks[kind] + np.arange(len(kind)) - first
    is_next_edge = blocks == after[kind]
    pages_each = limited.block_pages / np.maximum(limited.blocks, 1)
    pages = np.maximum(pages_each, 1)[kind] * blocks
    time_s = step_s(
        bucket_features(
            row_edges[np.searchsorted(row_edges, limited.rows[kind])],
            blocks,
            used_rows=limited.rows[kind],
            used_blocks=blocks,
            decode_pages=limited.decode_pages[kind],
            block_pages=pages,
            page_size=page_size,
            block_tokens=table.block_tokens,
        )
    )
    # Give each count the share of the classes whose budget it is the last to keep.
    share = np.zeros(len(kind))
    for tbt_s, of_class in tbt_budgets:
        fits = time_s <= tbt_s
        share += of_class * (fits & ~np.append(fits[1:], True))
    # If no budget ends among a step's counts, these have equal shares.
    share[is_next_edge] = 0.0
    share[(np.bincount(kind, share) == 0)[kind] & ~is_next_edge] = 1.0
    share /= np.bincount(kind, share)[kind]
    is_wanted = share > 0
    found = limited.where(kind[is_wanted])
    return dataclasses.replace(
        found,
        blocks=blocks[is_wanted],
        block_pages=np.round(pages[is_wanted]).astype(np.int64),
        weight=found.weight * share[is_wanted],
    )
