"""Which buckets an engine compiles: by strategy or from a file, and within limits."""

import dataclasses
import json
import logging

from jserve.config import EngineConfig
from jserve_sched.bucket_costs import BucketCosts
from jserve_sched.bucket_growth import TableCost, limit_programs
from jserve_sched.bucket_strategies import BucketStrategy, Explicit, make_strategy
from jserve_sched.buckets import BucketTable, table_from_json
from jserve_sched.predictor import Predictor
from jserve_sched.step_demand import StepDemand, demand_from_json, prior_demand

_LOG = logging.getLogger("jserve")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BucketChoice:
    """Buckets, and the steps by which to judge them.

    Attributes:
      demand: The steps expected; those the bucket file was fitted to, if it says.
    """

    table: BucketTable
    demand: StepDemand

    def cost(self, predictor: Predictor, *, page_size: int) -> TableCost:
        """Returns what prices a table: the expected seconds of a step."""
        return BucketCosts(
            self.demand, predictor.predict, self.table, page_size=page_size
        ).expected_s

    def limited(self, max_programs: int, cost_s: TableCost) -> "BucketChoice":
        """Returns the choice with at most `max_programs`; logs what is left out.

        Raises:
          ValueError: if some steps would have no bucket.
        """
        table = limit_programs(self.table, max_programs, cost_s)
        if table != self.table:
            _LOG.warning(
                "max_programs=%d: %d of %d programs are left out; rows %s, blocks %s",
                max_programs,
                self.table.num_programs - table.num_programs,
                self.table.num_programs,
                list(table.row_edges),
                list(table.block_edges),
            )
        return dataclasses.replace(self, table=table)


def choose_buckets(config: EngineConfig) -> BucketChoice:
    """Returns the buckets that a configuration asks for, before `max_programs`.

    Raises:
      ValueError: if the strategy is unknown, or the bucket file is invalid.
    """
    strategy: BucketStrategy
    demand = None
    if config.buckets is None:
        strategy = make_strategy(config.bucket_strategy)
    else:
        strategy, demand = _read(config)
    table = strategy.table(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_tokens=config.block_tokens,
    )
    if demand is None:
        demand = prior_demand(table.max_rows, table.max_blocks)
    return BucketChoice(table=table, demand=demand)


def _read(config: EngineConfig) -> tuple[Explicit, StepDemand | None]:
    """Returns the edges of the bucket file, and the steps it was fitted to."""
    assert config.buckets is not None
    try:
        text = config.buckets.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"buckets={str(config.buckets)!r}: {error}") from None
    try:
        table = table_from_json(text)
        demand = json.loads(text).get("demand")
        steps = None if demand is None else demand_from_json(json.dumps(demand))
    except ValueError as error:
        raise ValueError(f"buckets={str(config.buckets)!r}: {error}") from None
    if table.block_tokens != config.block_tokens:
        raise ValueError(
            f"block_tokens={config.block_tokens}, but the bucket file says "
            f"{table.block_tokens}"
        )
    return Explicit(row_edges=table.row_edges, block_edges=table.block_edges), steps
