"""The compiled shapes of a simulation, by what a flag says.

The one idea: every strategy is a table before anything runs; `fitted` without a file is
fitted first, to a load with another seed than those it is judged by.
"""

import dataclasses
from collections.abc import Collection

from jserve_sched.bucket_strategies import (
    FROM_FILE,
    SIMULATED_STRATEGIES,
    BucketStrategy,
    Explicit,
    PowersOfTwo,
    make_strategy,
)
from jserve_sched.buckets import BucketTable
from jserve_sched.cost_model import CostModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """What decides the shapes of a simulation.

    Attributes:
      file: the bucket file of strategies explicit and fitted; None without one.
      block_tokens: tokens in one prefill block; a file has its own.
    """

    file: BucketTable | None
    block_tokens: int

    def needs_fit(self, spec: str) -> bool:
        """Returns whether a strategy has no table before something has run."""
        return spec == "fitted" and self.file is None

    def check_used(self, specs: Collection[str], max_programs: int | None) -> None:
        """Checks that a file and a budget do something for some strategies.

        Args:
          specs: the strategies.
          max_programs: the most programs of a fit, if that was given.

        Raises:
          ValueError: if one of the two would do nothing.
        """
        if self.file is not None and not set(FROM_FILE) & set(specs):
            raise ValueError(
                f"buckets is for bucket strategies {' and '.join(FROM_FILE)}, not "
                f"{', '.join(specs)}"
            )
        if max_programs is not None and not any(map(self.needs_fit, specs)):
            raise ValueError(
                f"max_programs={max_programs} is for bucket strategy fitted without "
                f"buckets, not {', '.join(specs)}"
            )

    def table(self, spec: str, cost_model: CostModel) -> BucketTable:
        """Returns a strategy's table within a machine's limits.

        A strategy that needs a fit gets that of pow2, from whose number of programs
        the fit takes its budget.

        Raises:
          ValueError: if the strategy is unknown, has no file, or does not fit.
        """
        strategy: BucketStrategy
        limits = {
            "max_num_seqs": cost_model.max_num_seqs,
            "max_num_batched_tokens": cost_model.max_num_batched_tokens,
        }
        if self.needs_fit(spec):
            strategy = PowersOfTwo()
        elif spec in FROM_FILE:
            if self.file is None:
                raise ValueError(f"bucket strategy {spec} needs buckets, a file")
            strategy = Explicit(
                row_edges=self.file.row_edges, block_edges=self.file.block_edges
            )
            return strategy.table(**limits, block_tokens=self.file.block_tokens)
        else:
            strategy = make_strategy(spec, SIMULATED_STRATEGIES)
        return strategy.table(**limits, block_tokens=self.block_tokens)
