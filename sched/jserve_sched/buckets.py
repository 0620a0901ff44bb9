"""Buckets: the compiled static shapes, and the strategies that choose them.

A bucket is `B` decode rows and `NB` prefill blocks of `Q` tokens, so a step
computes `T = B + NB * Q` token positions whatever is real among them. The table
is the single source for padding, warm-up, the recompile guard, the scheduler's
candidates and the metrics.
"""

import bisect
import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

DEFAULT_BLOCK_TOKENS = 32
MIN_ROWS = 2  # one-row programs are slow in bf16 on CPU, and save nothing


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Bucket:
    """One compiled shape: `num_rows` B, `num_blocks` NB of `block_tokens` Q."""

    num_rows: int
    num_blocks: int
    block_tokens: int = DEFAULT_BLOCK_TOKENS

    @property
    def num_tokens(self) -> int:
        """Token positions it computes: T = B + NB * Q."""
        return self.num_rows + self.num_blocks * self.block_tokens

    def __str__(self) -> str:
        return f"B{self.num_rows}xNB{self.num_blocks}"


@dataclasses.dataclass(frozen=True)
class BucketTable:
    """Every shape that may run: the cross product of row and block edges.

    Attributes:
      row_edges: decode-row counts compiled, ascending, without repeats.
      block_edges: prefill-block counts compiled, ascending; holds 0 and more.
      block_tokens: tokens in one block, Q.
    """

    row_edges: tuple[int, ...]
    block_edges: tuple[int, ...]
    block_tokens: int = DEFAULT_BLOCK_TOKENS

    def __post_init__(self) -> None:
        for name in ("row_edges", "block_edges"):
            edges = getattr(self, name)
            if not edges or list(edges) != sorted(set(edges)) or edges[0] < 0:
                raise ValueError(
                    f"{name} must ascend without repeats from 0, got {edges}"
                )
        if self.block_edges[0] != 0 or len(self.block_edges) < 2:
            raise ValueError(
                f"block_edges must hold 0 and a prefill size, got {self.block_edges}"
            )
        if self.block_tokens < 1:
            raise ValueError(f"block_tokens={self.block_tokens} is below 1")

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """All shapes, largest first: a covering set is compiled soonest."""
        return tuple(
            Bucket(rows, blocks, self.block_tokens)
            for rows in reversed(self.row_edges)
            for blocks in reversed(self.block_edges)
        )

    @functools.cached_property
    def block_edge_array(self) -> "np.ndarray":
        """The block edges `[E]`, float64, for vectorised look-ups. Read only."""
        import numpy as np  # a program that only prints its --help needs none

        edges = np.array(self.block_edges, np.float64)
        edges.setflags(write=False)
        return edges

    @property
    def max_rows(self) -> int:
        """Most decode rows in a step."""
        return self.row_edges[-1]

    @property
    def max_blocks(self) -> int:
        """Most prefill blocks in a step."""
        return self.block_edges[-1]

    def fit(self, num_rows: int, num_blocks: int) -> Bucket:
        """Returns the smallest bucket that holds so much.

        Raises:
          ValueError: if either count exceeds the largest edge.
        """
        if not 0 <= num_rows <= self.max_rows:
            raise ValueError(f"num_rows={num_rows} exceeds the largest {self.max_rows}")
        if not 0 <= num_blocks <= self.max_blocks:
            raise ValueError(
                f"num_blocks={num_blocks} exceeds the largest {self.max_blocks}"
            )
        row_index = bisect.bisect_left(self.row_edges, num_rows)
        block_index = bisect.bisect_left(self.block_edges, num_blocks)
        return Bucket(
            self.row_edges[row_index], self.block_edges[block_index], self.block_tokens
        )

    def largest_block_edge(self, num_blocks: int) -> int:
        """Returns the largest compiled block count that is at most `num_blocks`."""
        index = bisect.bisect_right(self.block_edges, num_blocks) - 1
        return self.block_edges[max(index, 0)]

    def to_json(self) -> dict[str, Any]:
        """Returns the form that `table_from_json` reads."""
        return {
            "row_edges": list(self.row_edges),
            "block_edges": list(self.block_edges),
            "block_tokens": self.block_tokens,
        }


def table_from_json(text: str) -> BucketTable:
    """Reads a bucket file: row_edges, block_edges and, optionally, block_tokens.

    Raises:
      ValueError: if the text is not such a table.
    """
    try:
        row: Any = json.loads(text)
        return BucketTable(
            tuple(int(edge) for edge in row["row_edges"]),
            tuple(int(edge) for edge in row["block_edges"]),
            int(row.get("block_tokens", DEFAULT_BLOCK_TOKENS)),
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            "a bucket file is a JSON object with row_edges and block_edges "
            f"(lists of integers): {error!r}"
        ) from None


class BucketStrategy(Protocol):
    """Chooses the shapes to compile for a server's limits."""

    def table(
        self, *, max_num_seqs: int, max_num_batched_tokens: int, block_tokens: int
    ) -> BucketTable:
        """Returns the table.

        Args:
          max_num_seqs: most requests in a step; the largest row edge.
          max_num_batched_tokens: most token positions in a step.
          block_tokens: tokens in one prefill block, Q.
        """
        ...


def _powers_of_two(first: int, last: int) -> list[int]:
    edges = []
    edge = first
    while edge < last:
        edges.append(edge)
        edge *= 2
    return [*edges, last]


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class PowersOfTwo:
    """Doubles each dimension up to its limit; few programs, up to 2x waste."""

    def table(
        self, *, max_num_seqs: int, max_num_batched_tokens: int, block_tokens: int
    ) -> BucketTable:
        """Returns rows 2, 4, 8 ... and blocks 0, 1, 2, 4 ... up to the limits."""
        blocks = _max_blocks(max_num_seqs, max_num_batched_tokens, block_tokens)
        return BucketTable(
            tuple(_powers_of_two(min(MIN_ROWS, max_num_seqs), max_num_seqs)),
            (0, *_powers_of_two(1, blocks)),
            block_tokens,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explicit:
    """Exactly the edges given; those beyond the server's limits are refused."""

    row_edges: Sequence[int]
    block_edges: Sequence[int]

    def table(
        self, *, max_num_seqs: int, max_num_batched_tokens: int, block_tokens: int
    ) -> BucketTable:
        """Returns the table of these edges."""
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
        blocks = _max_blocks(max_num_seqs, max_num_batched_tokens, block_tokens)
        if table.max_blocks > blocks:
            raise ValueError(
                f"the largest block edge {table.max_blocks} is over {blocks}, all that "
                f"max_num_batched_tokens={max_num_batched_tokens} allows"
            )
        return table


@dataclasses.dataclass(frozen=True, kw_only=True)
class Continuous:
    """No padding at all: every count is an edge and a block is one token.

    No engine compiles so many programs; the simulator compares with it, as the
    papers' engines have no static shapes.
    """

    def table(
        self, *, max_num_seqs: int, max_num_batched_tokens: int, block_tokens: int
    ) -> BucketTable:
        """Returns all counts up to the limits; `block_tokens` is not heeded."""
        del block_tokens
        return BucketTable(
            tuple(range(max_num_seqs + 1)), tuple(range(max_num_batched_tokens + 1)), 1
        )


STRATEGIES: dict[str, BucketStrategy] = {"pow2": PowersOfTwo()}
