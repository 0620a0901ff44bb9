"""Buckets: the static shapes of a step that are compiled.

A bucket is `B` decode rows and `NB` prefill blocks of `Q` tokens. A step in it computes
`T = B + NB * Q` token positions, of which some may be padding. The table is the single
source for padding, warm-up, the recompile guard, the scheduler's candidates and the
metrics.
"""

import bisect
import dataclasses
import functools
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

DEFAULT_BLOCK_TOKENS = 32
_LEAST_SHARE = 4  # rows beside a block are at least its tokens divided by this


@dataclasses.dataclass(frozen=True, order=True, slots=True)
class Bucket:
    """One static shape of a step: `num_rows` B, `num_blocks` NB, `block_tokens` Q."""

    num_rows: int
    num_blocks: int
    block_tokens: int = DEFAULT_BLOCK_TOKENS

    @property
    def num_tokens(self) -> int:
        """Number of token positions that a step computes: T = B + NB * Q."""
        return self.num_rows + self.num_blocks * self.block_tokens

    def __str__(self) -> str:
        return f"B{self.num_rows}xNB{self.num_blocks}"


@dataclasses.dataclass(frozen=True)
class BucketTable:
    """Every bucket that may run: the pairs of row and block edges that can occur.

    Three kinds of pairs cannot occur. A pair of more than `max_tokens` token positions
    exceeds the step's limit. A step with prefill has at least one decode less than
    the largest row edge, since the request of the prompt holds a slot too. So if one
    row less than the largest is an edge, the largest occurs without prefill only. And
    so do edges below a quarter of a block, unless there is no other: few decodes beside
    blocks take the next edge, whose padding costs less than programs of their own.

    Attributes:
      row_edges: Numbers of decode rows, ascending, without repeats.
      block_edges: Numbers of prefill blocks, ascending: 0 and at least one more.
      block_tokens: Tokens in one block, Q.
      max_tokens: Most token positions in a step; None if every pair is allowed.

    Raises:
      ValueError: If the edges are not such lists, or an edge is in no pair.
    """

    row_edges: tuple[int, ...]
    block_edges: tuple[int, ...]
    block_tokens: int = DEFAULT_BLOCK_TOKENS
    max_tokens: int | None = None

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
        # Each edge needs a pair within the limit.
        for rows, blocks in (
            (self.max_rows, self.block_edges[1]),
            (self.prefill_row_edges[0], self.max_blocks),
        ):
            num_tokens = rows + blocks * self.block_tokens
            if self.max_tokens is not None and num_tokens > self.max_tokens:
                raise ValueError(
                    f"block edge {blocks} does not fit beside {rows} rows: "
                    f"{num_tokens} tokens are over max_tokens={self.max_tokens}"
                )

    @functools.cached_property
    def prefill_row_edges(self) -> tuple[int, ...]:
        """Row edges of the steps with prefill."""
        most = max(self.max_rows - 1, 0)
        if most not in self.row_edges:
            most = self.max_rows
        least = min(most, self.block_tokens // _LEAST_SHARE)
        return tuple(edge for edge in self.row_edges if least <= edge <= most)

    def _num_block_edges(self, num_rows: int) -> int:
        """Returns the number of block edges, from the smallest, beside a row edge."""
        if num_rows not in self.prefill_row_edges:
            return 1
        if self.max_tokens is None:
            return len(self.block_edges)
        room = (self.max_tokens - num_rows) // self.block_tokens
        return bisect.bisect_right(self.block_edges, room)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """All buckets that can occur, largest first."""
        return tuple(
            Bucket(rows, blocks, self.block_tokens)
            for rows in reversed(self.row_edges)
            for blocks in reversed(self.block_edges[: self._num_block_edges(rows)])
        )

    @property
    def num_programs(self) -> int:
        """Number of buckets that can occur, counted without making them."""
        return sum(self._num_block_edges(rows) for rows in self.row_edges)

    @functools.cached_property
    def block_edge_array(self) -> "np.ndarray":
        """Block edges `[E]`, float64, read-only, for vectorised look-ups."""
        import numpy as np  # here, since programs print their --help without NumPy

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
        """Returns the smallest bucket that holds these counts.

        Not checked: whether the pair is one of `buckets`, within `max_tokens`.

        Raises:
          ValueError: If either count exceeds the largest edge.
        """
        if not 0 <= num_rows <= self.max_rows:
            raise ValueError(f"num_rows={num_rows} exceeds the largest {self.max_rows}")
        if not 0 <= num_blocks <= self.max_blocks:
            raise ValueError(
                f"num_blocks={num_blocks} exceeds the largest {self.max_blocks}"
            )
        edges = self.prefill_row_edges if num_blocks else self.row_edges
        place = bisect.bisect_left(edges, num_rows)
        rows = edges[place] if place < len(edges) else self.max_rows
        blocks = self.block_edges[bisect.bisect_left(self.block_edges, num_blocks)]
        return Bucket(rows, blocks, self.block_tokens)

    def block_edge_beside(self, num_rows: int, max_tokens: int) -> int:
        """Returns the largest block edge that fits in a step with `num_rows` decodes.

        Decodes are padded to their edge. The limit is the lower of `max_tokens` and the
        table's.
        """
        if self.max_tokens is not None:
            max_tokens = min(max_tokens, self.max_tokens)
        room = (max_tokens - self.fit(num_rows, 1).num_rows) // self.block_tokens
        index = bisect.bisect_right(self.block_edges, room) - 1
        return self.block_edges[max(index, 0)]

    def to_json(self) -> dict[str, Any]:
        """Returns the form that `table_from_json` reads."""
        row: dict[str, Any] = {
            "row_edges": list(self.row_edges),
            "block_edges": list(self.block_edges),
            "block_tokens": self.block_tokens,
        }
        limit = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        return row | limit


def table_from_json(text: str) -> BucketTable:
    """Reads a bucket file: row_edges, block_edges, maybe block_tokens and max_tokens.

    Other keys, such as the source of the edges, are ignored.

    Raises:
      ValueError: If the text is not such a table, or a number in it is not an integer.
    """
    try:
        row: Any = json.loads(text)
        rows, blocks = tuple(row["row_edges"]), tuple(row["block_edges"])
        block_tokens = row.get("block_tokens", DEFAULT_BLOCK_TOKENS)
        max_tokens = row.get("max_tokens")
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            "a bucket file is a JSON object with row_edges and block_edges "
            f"(lists of integers): {error!r}"
        ) from None
    for value in (*rows, *blocks, block_tokens, max_tokens or 0):
        if type(value) is not int:  # nor True, 4.0 and "4"
            raise ValueError(f"bucket file: {value!r} is not an integer")
    return BucketTable(rows, blocks, block_tokens, max_tokens)
