"""Bucket strategies: which buckets to compile within a server's limits.

A strategy chooses the edges of each dimension by a rule. The limits are always edges,
so every step has a bucket.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from jserve_sched.buckets.table import BucketTable
from jserve_sched.options import make_from_spec


def _max_blocks(
    max_num_seqs: int, max_num_batched_tokens: int, block_tokens: int
) -> int:
    """Returns the prefill blocks that fit beside a full set of decode rows."""
    if max_num_batched_tokens < max_num_seqs + block_tokens:
        raise ValueError(
            f"max_num_batched_tokens={max_num_batched_tokens} leaves no room for a "
            f"prefill block beside {max_num_seqs} rows: at least "
            f"{max_num_seqs + block_tokens}"
        )
    return (max_num_batched_tokens - max_num_seqs) // block_tokens


class BucketStrategy:
    """Chooses the buckets to compile within a server's limits.

    A rule implements `_row_edges`, and `_block_edges` if that differs: ascending edges
    from 1 or more to the limit.
    """

    def _row_edges(self, last: int) -> Sequence[int]:
        raise NotImplementedError

    def _block_edges(self, last: int) -> Sequence[int]:
        return self._row_edges(last)

    def table(
        self, *, max_num_seqs: int, max_num_batched_tokens: int, block_tokens: int
    ) -> BucketTable:
        """Returns the table of the rule's edges, up to the limits.

        Args:
          max_num_seqs: Most requests in a step; the largest row edge.
          max_num_batched_tokens: Most token positions in a step.
        """
        max_blocks = _max_blocks(max_num_seqs, max_num_batched_tokens, block_tokens)
        return BucketTable(
            tuple(self._row_edges(max_num_seqs)),
            (0, *self._block_edges(max_blocks)),
            block_tokens,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowersOfTwo(BucketStrategy):
    """Rows 1, 2, 4 ... and blocks 0, 1, 2, 4 ...: few programs, up to half padding."""

    def _row_edges(self, last: int) -> Sequence[int]:
        return sorted({*(1 << bit for bit in range(last.bit_length())), last})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear(BucketStrategy):
    """Every multiple of a gap: equal padding at any size, and many programs.

    Attributes:
      row_gap: Number of rows between two edges.
      block_gap: Number of prefill blocks between two edges.
    """

    row_gap: int = 8
    block_gap: int = 2

    def __post_init__(self) -> None:
        for name in ("row_gap", "block_gap"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is below 1")

    def _row_edges(self, last: int) -> Sequence[int]:
        return sorted({1, *range(self.row_gap, last, self.row_gap), last})

    def _block_edges(self, last: int) -> Sequence[int]:
        return sorted({1, *range(self.block_gap, last, self.block_gap), last})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explicit(BucketStrategy):
    """Exactly the edges given; those beyond the server's limits are refused.

    The largest block edge may be more than fits beside full rows, but must fit beside
    the smallest row edge.
    """

    row_edges: Sequence[int]
    block_edges: Sequence[int]

    def table(
        self, *, max_num_seqs: int, max_num_batched_tokens: int, block_tokens: int
    ) -> BucketTable:
        """Returns the table of these edges."""
        _max_blocks(max_num_seqs, max_num_batched_tokens, block_tokens)
        table = BucketTable(
            tuple(self.row_edges), tuple(self.block_edges), block_tokens
        )
        if table.row_edges[0] < 1:
            raise ValueError(f"row_edges must begin at 1 or more: {table.row_edges}")
        if table.max_rows != max_num_seqs:
            raise ValueError(
                f"the largest row edge {table.max_rows} is not "
                f"max_num_seqs={max_num_seqs}"
            )
        return dataclasses.replace(table, max_tokens=max_num_batched_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuous(BucketStrategy):
    """No padding at all: every count is an edge and a block is one token.

    It is for simulations of engines without static shapes, such as those of the papers.
    """

    def table(
        self, *, max_num_seqs: int, max_num_batched_tokens: int, block_tokens: int
    ) -> BucketTable:
        """Returns the table of all counts up to the limits; ignores `block_tokens`."""
        del block_tokens
        return BucketTable(
            tuple(range(max_num_seqs + 1)), tuple(range(max_num_batched_tokens + 1)), 1
        )


STRATEGIES: dict[str, type[BucketStrategy]] = {
    "pow2": PowersOfTwo,
    "linear": Linear,
}
"""Strategies that a server can use, by name; they need only its limits."""

SIMULATED_STRATEGIES: dict[str, type[BucketStrategy]] = {
    **STRATEGIES,
    "none": Continuous,
}
"""Strategies that the simulator can use, by name."""

FROM_FILE = ("explicit", "fitted")
"""Names of the strategies whose edges come from a bucket file."""


def make_strategy(
    spec: str, strategies: Mapping[str, type[BucketStrategy]] = STRATEGIES
) -> BucketStrategy:
    """Returns the strategy that `name:option=value:...` describes.

    Raises:
      ValueError: If the strategy or an option is unknown, or a value is invalid.
    """
    name = spec.partition(":")[0]
    if name in FROM_FILE:
        raise ValueError(
            f"bucket strategy {spec!r} needs a bucket file (buckets=FILE); without "
            f"one: {sorted(strategies)}"
        )
    if name not in strategies:
        known = sorted([*strategies, *FROM_FILE])
        raise ValueError(f"bucket strategy {name!r} is unknown; known: {known}")
    strategy: BucketStrategy = make_from_spec(spec, strategies, kind="bucket strategy")
    return strategy
