"""Step demand: what steps would want of a bucket table, free of the table they ran in.

The one idea: a step says two things. One that did all the prefill there was wanted
just that much, and rounds *up* to an edge. One that left work over sat on the largest
edge its limits allowed; it wanted as much as fits under them, which lies between that
edge and the next, and it rounds *down*: to a smaller step, and more of them. That is
how limits of time get into the edges: the best edge for such a step is the one just
below its limit.

`N` is the number of kinds of steps in a demand.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from jserve_sched import features
from jserve_sched.buckets import BucketTable, UsedBucket

StepTimes = Callable[[np.ndarray], np.ndarray]
"""Features `[N, F]` to seconds `[N]`, for blocks of the table's size."""

_COLUMNS = ("rows", "blocks", "last_block", "is_limited", "decode_pages", "block_pages")


class DemandStep(UsedBucket, Protocol):
    """What is wanted of a recorded or simulated step."""

    @property
    def decode_pages(self) -> int:
        """KV pages of the longest decode; 0 without one."""
        ...

    @property
    def block_pages(self) -> int:
        """KV pages of the longest chunk; 0 without one."""
        ...

    @property
    def leaves_work(self) -> bool:
        """Whether prefill was left over for want of room."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StepDemand:
    """Kinds of steps, and how many of each; all arrays `[N]`.

    Attributes:
      rows: decode rows wanted.
      blocks: prefill blocks wanted; of a limited step the least it may want.
      last_block: the most it may want, evenly spread; `blocks` if not limited.
      is_limited: whether it rounds down, since a limit ended it.
      decode_pages: KV pages of the longest decode; 0 without decodes.
      block_pages: KV pages of the longest chunk; 0 without prefill.
      weight: number of such steps, above 0.
    """

    rows: np.ndarray
    blocks: np.ndarray
    last_block: np.ndarray
    is_limited: np.ndarray
    decode_pages: np.ndarray
    block_pages: np.ndarray
    weight: np.ndarray

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in (*_COLUMNS, "weight")}
        if len(lengths) != 1 or not len(self.weight):
            raise ValueError(
                f"a demand has one or more steps in every column, got {lengths}"
            )
        if not np.all(np.isfinite(self.weight) & (self.weight > 0)):
            raise ValueError(f"weight {np.min(self.weight)} is not above 0")
        for name in _COLUMNS:
            if np.min(getattr(self, name)) < 0:
                raise ValueError(f"{name}={np.min(getattr(self, name))} is below 0")
        if np.any(self.last_block < self.blocks):
            raise ValueError("last_block is below blocks")
        if np.any((self.last_block > self.blocks) & ~self.is_limited):
            raise ValueError("last_block is above blocks where nothing is limited")

    @property
    def num_steps(self) -> float:
        """Steps described."""
        return float(np.sum(self.weight))

    def scaled(self, num_steps: float) -> "StepDemand":
        """Returns the same mixture of `num_steps` steps."""
        return dataclasses.replace(
            self, weight=self.weight * (num_steps / self.num_steps)
        )

    def where(self, mask: np.ndarray) -> "StepDemand":
        """Returns the kinds at which `[N]` mask is true; at least one."""
        return StepDemand(
            **{
                field.name: getattr(self, field.name)[mask]
                for field in dataclasses.fields(self)
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the form that `demand_from_json` reads: column by column."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        return {
            **{name: column.astype(int).tolist() for name, column in columns.items()},
            "weight": [float(f"{weight:.6g}") for weight in self.weight.tolist()],
        }


def demand_from_json(text: str) -> StepDemand:
    """Reads what `StepDemand.to_json` returned.

    Raises:
      ValueError: if the text is no demand.
    """
    try:
        row: Any = json.loads(text)
        columns = {name: np.array(row[name], np.int64) for name in _COLUMNS}
        columns["is_limited"] = columns["is_limited"].astype(bool)
        return StepDemand(**columns, weight=np.array(row["weight"], np.float64))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"a step demand is a JSON object with lists {[*_COLUMNS, 'weight']}: "
            f"{error!r}"
        ) from None


def merge(demands: Sequence[StepDemand]) -> StepDemand:
    """Returns all steps of several demands; steps of one kind become one entry."""
    keys = np.concatenate(
        [np.stack([getattr(one, name) for name in _COLUMNS], 1) for one in demands]
    ).astype(np.int64)
    weight = np.concatenate([one.weight for one in demands])
    kinds, places = np.unique(keys, axis=0, return_inverse=True)
    rows, blocks, last_block, is_limited, decode_pages, block_pages = kinds.T
    return StepDemand(
        rows=rows,
        blocks=blocks,
        last_block=last_block,
        is_limited=is_limited.astype(bool),
        decode_pages=decode_pages,
        block_pages=block_pages,
        weight=np.bincount(places.reshape(-1), weight, len(kinds)),
    )


def prior_demand(max_rows: int, max_blocks: int) -> StepDemand:
    """Returns what to expect where nothing is known: a weight of 1 in all.

    One half are decode steps, one half have prefill too; counts of rows and blocks
    are log-uniform, so no size is favoured over its double. Contexts are short. Beside
    prefill there is a row less than the most, for whose prompt it is holds a slot.
    """
    rows, blocks = np.meshgrid(np.arange(max_rows + 1), np.arange(max_blocks + 1))
    # Neither an empty step nor prefill for a request that has no slot.
    can_occur = (rows + blocks > 0) & ((rows < max_rows) | (blocks == 0))
    rows, blocks = rows[can_occur], blocks[can_occur]
    weight = 1.0 / ((1.0 + rows) * np.maximum(blocks, 1))
    for part in (blocks == 0, blocks > 0):
        weight[part] *= 0.5 / np.sum(weight[part])
    return StepDemand(
        rows=rows,
        blocks=blocks,
        last_block=blocks,
        is_limited=np.zeros(len(rows), bool),
        decode_pages=(rows > 0).astype(np.int64),
        block_pages=(blocks > 0).astype(np.int64),
        weight=weight,
    )


def shape_features(
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
    """Returns the features `[N, F]` of steps of which only shapes are known.

    Contexts of decodes are taken to spread evenly up to the longest. Blocks are taken
    to belong to as few chunks as can be, all of the longest's context.

    Args:
      num_rows: `[N]` decode rows compiled.
      num_blocks: `[N]` prefill blocks compiled.
      used_rows: rows that hold a decode; this and all below `[N]` or one for all.
      used_blocks: blocks that hold a chunk, full ones.
      decode_pages: KV pages of the longest decode.
      block_pages: KV pages of the longest chunk.
      page_size: tokens in one KV page.
      block_tokens: tokens in one prefill block, Q.
    """
    matrix = np.zeros((len(num_rows), features.NUM_FEATURES))
    has_decodes = np.asarray(used_rows) > 0
    longest = np.asarray(decode_pages) * page_size
    context = np.maximum(longest * (np.asarray(used_rows) + 1) / 2 - used_rows, 0)
    context = context * has_decodes
    tokens = np.asarray(used_blocks) * block_tokens
    stop = np.maximum(np.asarray(block_pages), 1) * page_size
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
    matrix[:, features.DECODE_PAGES] = decode_pages * has_decodes
    matrix[:, features.BLOCK_PAGES] = block_pages * (tokens > 0)
    return matrix


def _columns(steps: Iterable[DemandStep]) -> np.ndarray:
    """Returns `[N, 7]`: the fields of `DemandStep`, in order, as integers."""
    rows = [
        (
            step.num_rows,
            step.num_blocks,
            step.used_rows,
            step.used_blocks,
            step.decode_pages,
            step.block_pages,
            step.leaves_work,
        )
        for step in steps
    ]
    if not rows:
        raise ValueError("a demand needs at least one step")
    return np.array(rows, np.int64)


def demand_from_steps(
    steps: Iterable[DemandStep],
    table: BucketTable,
    *,
    tbt_budgets: Sequence[tuple[float, float]],
    step_s: StepTimes,
    page_size: int,
) -> StepDemand:
    """Returns what steps that ran in a table's buckets would want of any table.

    A step with work left over is limited if its blocks end at an edge; if they do not,
    some count other than an edge was asked for, and it is one that rounds up. A limited
    step on edge e, with f the next, wants as many blocks as its limit allows: where
    the largest b with `step_s(rows, b) <= tbt_s` of a class lies in e .. f-1, that
    many, by the shares of these classes; if none does, any of e .. f-1 alike. On the
    last edge it wants just that.

    Args:
      steps: at least one.
      table: the buckets they ran in.
      tbt_budgets: of each service class its time between tokens, seconds, and its
        share of the requests.
      step_s: how long steps take.
      page_size: tokens in one KV page.

    Raises:
      ValueError: if there is no step, or one is in no bucket of the table.
    """
    found = _columns(steps)
    num_rows, num_blocks, _, used_blocks, _, _, leaves_work = found.T
    edges = np.array(table.block_edges)
    for name, used, known in (
        ("num_rows", num_rows, np.array(table.row_edges)),
        ("num_blocks", num_blocks, edges),
    ):
        strange = np.setdiff1d(used, known)
        if len(strange):
            raise ValueError(
                f"steps have {name}={strange[0]}, no edge of {known.tolist()}"
            )
    is_limited = (leaves_work > 0) & (used_blocks == num_blocks)
    is_limited &= num_blocks < table.max_blocks
    parts = []
    if not np.all(is_limited):
        parts.append(
            _demand(found[~is_limited], used_blocks[~is_limited], is_limited=False)
        )
    if np.any(is_limited):
        kinds, counts = np.unique(found[is_limited], axis=0, return_counts=True)
        after = edges[np.searchsorted(edges, kinds[:, 1], side="right")]
        limited = _demand(kinds, after - 1, is_limited=True, weight=counts)
        wishes = [
            _with_wish(limited, kinds, tbt_s, share, step_s, page_size, table)
            for tbt_s, share in tbt_budgets
            if share > 0
        ]
        parts += _shared_out(limited, wishes)
    return merge(parts)


def _demand(
    found: np.ndarray,
    last_block: np.ndarray,
    *,
    is_limited: bool,
    weight: np.ndarray | None = None,
) -> StepDemand:
    _, _, rows, blocks, decode_pages, block_pages, _ = found.T
    return StepDemand(
        rows=rows,
        blocks=blocks,
        last_block=last_block,
        is_limited=np.full(len(rows), is_limited),
        decode_pages=decode_pages,
        block_pages=block_pages,
        weight=np.ones(len(rows)) if weight is None else weight.astype(np.float64),
    )


def _with_wish(
    limited: StepDemand,
    kinds: np.ndarray,
    tbt_s: float,
    share: float,
    step_s: StepTimes,
    page_size: int,
    table: BucketTable,
) -> tuple[np.ndarray, float]:
    """Returns `[N]` what a class's budget allows, -1 if not there, and its share."""
    wish = np.full(len(kinds), -1)
    widest = int(np.max(limited.last_block - limited.blocks))
    for extra in range(widest + 2):
        # One block beyond the last is asked about too: does it still fit?
        blocks = limited.blocks + extra
        matrix = shape_features(
            kinds[:, 0],
            blocks,
            used_rows=limited.rows,
            used_blocks=blocks,
            decode_pages=limited.decode_pages,
            block_pages=np.maximum(limited.block_pages, 1),
            page_size=page_size,
            block_tokens=table.block_tokens,
        )
        fits = step_s(matrix) <= tbt_s
        wish = np.where(fits & (blocks <= limited.last_block + 1), blocks, wish)
    return np.where(wish > limited.last_block, -1, wish), share


def _shared_out(
    limited: StepDemand, wishes: Sequence[tuple[np.ndarray, float]]
) -> list[StepDemand]:
    """Returns limited steps, by the classes whose budget lies among their wishes."""
    total = np.zeros(len(limited.weight))
    for wish, share in wishes:
        total += share * (wish >= 0)
    parts = []
    for wish, share in wishes:
        is_here = wish >= 0
        if np.any(is_here):
            parts.append(
                dataclasses.replace(
                    limited.where(is_here),
                    blocks=wish[is_here],
                    last_block=wish[is_here],
                    weight=(limited.weight * share)[is_here] / total[is_here],
                )
            )
    if np.any(total == 0):
        parts.append(limited.where(total == 0))
    return parts
