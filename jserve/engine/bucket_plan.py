"""Which buckets an engine compiles: by strategy or from a file, and within limits."""

import logging

from jserve.config import EngineConfig
from jserve_sched.buckets.growth import TableCost, limit_programs
from jserve_sched.buckets.strategies import BucketStrategy, Explicit, make_strategy
from jserve_sched.buckets.table import BucketTable, table_from_json
from jserve_sched.fitting.costs import BucketCosts
from jserve_sched.fitting.demand import prior_demand
from jserve_sched.timing.predictor import Predictor

_LOG = logging.getLogger("jserve")


def choose_buckets(config: EngineConfig) -> BucketTable:
    """Returns the buckets that a configuration asks for, before `max_programs`.

    Raises:
      ValueError: If the strategy is unknown, or the bucket file is invalid.
    """
    if config.buckets is None:
        strategy = make_strategy(config.bucket_strategy)
    else:
        strategy = _read(config)
    return strategy.table(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_tokens=config.block_tokens,
    )


def _read(config: EngineConfig) -> BucketStrategy:
    """Returns the edges of the bucket file."""
    assert config.buckets is not None
    try:
        table = table_from_json(config.buckets.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"buckets={str(config.buckets)!r}: {error}") from None
    if table.block_tokens != config.block_tokens:
        raise ValueError(
            f"block_tokens={config.block_tokens}, but the bucket file says "
            f"{table.block_tokens}"
        )
    return Explicit(row_edges=table.row_edges, block_edges=table.block_edges)


def expected_cost(
    table: BucketTable, predictor: Predictor, *, page_size: int
) -> TableCost:
    """Returns what prices tables with the largest edges of `table`.

    That is the expected seconds of a step where nothing is known of the traffic.
    """
    demand = prior_demand(table.max_rows, table.max_blocks)
    return BucketCosts(demand, predictor.predict, table, page_size=page_size).expected_s


def limit_buckets(
    table: BucketTable, max_programs: int, cost_s: TableCost
) -> BucketTable:
    """Returns a table with at most `max_programs`; logs what is left out.

    Raises:
      ValueError: If some steps would have no bucket.
    """
    found = limit_programs(table, max_programs, cost_s)
    if found != table:
        _LOG.warning(
            "max_programs=%d: %d of %d programs are left out; rows %s, blocks %s",
            max_programs,
            table.num_programs - found.num_programs,
            table.num_programs,
            list(found.row_edges),
            list(found.block_edges),
        )
    return found
