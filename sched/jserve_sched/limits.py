"""Limits: do a scheduler's parts go together?"""

from jserve_sched.buckets import BucketTable
from jserve_sched.ledger import KvLedger


def check_parts(
    buckets: BucketTable,
    ledger: KvLedger,
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
) -> None:
    """Checks that every step which may be asked for has a shape.

    Raises:
      ValueError: If the limits or the sizes do not go together.
    """
    if max_num_seqs > buckets.max_rows:
        raise ValueError(
            f"max_num_seqs={max_num_seqs} exceeds the largest row edge "
            f"{buckets.max_rows}"
        )
    least = buckets.fit(max_num_seqs, 1).num_rows + (
        buckets.block_edges[1] * buckets.block_tokens
    )
    if max_num_batched_tokens < least:
        raise ValueError(
            f"max_num_batched_tokens={max_num_batched_tokens} leaves no room for "
            f"the smallest prefill beside {max_num_seqs} rows: at least {least}"
        )
    if ledger.page_size % buckets.block_tokens:
        raise ValueError(
            f"page_size={ledger.page_size} is not a multiple of "
            f"block_tokens={buckets.block_tokens}"
        )
