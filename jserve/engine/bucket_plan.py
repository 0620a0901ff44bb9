"""Which buckets a server compiles and in which order, decided once from its flags."""

import functools
import logging

from jserve.config import EngineConfig
from jserve.program import read_setting
from jserve_sched.buckets.growth import BucketPlan, plan_growth
from jserve_sched.buckets.strategies import BucketStrategy, Explicit, make_strategy
from jserve_sched.buckets.table import table_from_json
from jserve_sched.fitting.costs import BucketCosts
from jserve_sched.fitting.demand import prior_demand
from jserve_sched.timing.table import guess_step_s

_LOG = logging.getLogger("jserve")


def plan_buckets(config: EngineConfig) -> BucketPlan:
    """Returns the plan of a configuration; logs what `max_programs` leaves out.

    Raises:
      ValueError: If the bucket file is invalid, an edge is beyond the server's limits,
        or `max_programs` is too few for every step to have a bucket.
    """
    # All edges: by the strategy's rule or from the bucket file.
    table = _strategy(config).table(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_tokens=config.block_tokens,
    )
    # Their prices: neither the traffic nor the time of a step is known yet, so an edge
    # is worth what it saves of guessed step times where no size is favoured.
    costs = BucketCosts(
        prior_demand(table.max_rows, table.max_blocks),
        functools.partial(guess_step_s, block_tokens=table.block_tokens),
        table,
        page_size=config.page_size,
    )
    # The order of growth, and where it ends.
    plan = plan_growth(table, costs.expected_s)
    if not config.max_programs:
        return plan
    plan = plan.within(config.max_programs)
    if plan.final != table:
        _LOG.warning(
            "max_programs=%d: %d of %d programs are left out; rows %s, blocks %s",
            config.max_programs,
            table.num_programs - plan.final.num_programs,
            table.num_programs,
            list(plan.final.row_edges),
            list(plan.final.block_edges),
        )
    return plan


def _strategy(config: EngineConfig) -> BucketStrategy:
    """Returns what chooses the edges: a rule, or the bucket file."""
    if config.buckets is None:
        return make_strategy(config.strategy)
    table = read_setting("buckets", config.buckets, table_from_json)
    if table.block_tokens != config.block_tokens:
        raise ValueError(
            f"block_tokens={config.block_tokens}, but the bucket file says "
            f"{table.block_tokens}"
        )
    return Explicit(row_edges=table.row_edges, block_edges=table.block_edges)
