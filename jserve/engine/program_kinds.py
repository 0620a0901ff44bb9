"""The kinds of programs: a bucket's step, heads, and updates of a slot."""

import enum
from collections.abc import Iterable
from typing import NamedTuple

from jserve_sched.buckets.table import Bucket


class Head(NamedTuple):
    """A program from rows to tokens: logits, and a draw unless it takes the maximum."""

    num_rows: int
    is_drawn: bool

    def __str__(self) -> str:
        return f"{'draw' if self.is_drawn else 'head'}{self.num_rows}"


class SlotUpdate(enum.Enum):
    """The programs that replace what the device knows of one slot."""

    TABLE = "table"
    SAMPLER = "sampler"

    def __str__(self) -> str:
        return self.value


Program = Bucket | Head | SlotUpdate


def programs_of(buckets: Iterable[Bucket]) -> list[Program]:
    """Returns the programs that steps in these buckets need, the tiny ones first.

    Each of their row edges has two heads.
    """
    buckets = list(buckets)
    rows = dict.fromkeys(bucket.num_rows for bucket in buckets if bucket.num_rows)
    return [
        *SlotUpdate,
        *buckets,
        *(Head(count, drawn) for count in rows for drawn in (True, False)),
    ]
