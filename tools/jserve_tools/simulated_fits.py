"""Fits the buckets of the strategy `fitted` before a sweep, for each policy.

The one idea: fitting is a task like the runs, so processes share it, it is stored when
finished, and it sees a load with a seed by which no run is judged.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jserve_sched.buckets import table_from_json
from jserve_tools.bucket_fits import fit_to_simulation
from jserve_tools.run_store import RunStore
from jserve_tools.simulated_loads import Levels
from jserve_tools.simulation import Experiment
from jserve_tools.sweep import RateTask, guess_qps, run_all


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitTask:
    """Fits buckets to one load under one policy.

    Attributes:
      load: a run of the load; of its buckets only the size of a block is heeded.
      max_programs: most programs.
    """

    load: RateTask
    max_programs: int

    def run(self) -> dict[str, Any]:
        """Returns the bucket file `table`, and an entry of the report's `fits`."""
        history = fit_to_simulation(
            self.load.experiment,
            self.load.arrivals(),
            seed=self.load.seed,
            max_programs=self.max_programs,
        )
        labels = {
            "policy": self.load.experiment.policy,
            "seed": self.load.seed,
            **({"qps": self.load.qps} if math.isfinite(self.load.qps) else {}),
            "max_programs": self.max_programs,
        }
        return {"table": history.table.to_json(), "fit": labels | history.to_json()}


def fit_experiments(
    experiments: Sequence[Experiment],
    *,
    needs_fit: Callable[[str], bool],
    seed: int,
    qps: Sequence[float] | None,
    levels: Levels | None,
    max_programs: int | None,
    num_processes: int,
    store: RunStore | None,
) -> tuple[list[Experiment], list[Mapping[str, Any]]]:
    """Returns the experiments, with buckets where they are to be fitted, and the fits.

    Args:
      experiments: those to be fitted have the buckets that set their budget.
      needs_fit: whether a bucket strategy, by its name, is fitted here.
      seed: draws the load that is fitted to.
      qps: rates that are judged; the fit is at their mean. None guesses a rate near
        the goodput.
      levels: rates that take turns, if they do.
      max_programs: most programs; None takes as many as the experiment's buckets.
      num_processes: processes that share the work.
      store: of finished tasks.
    """
    found = list(experiments)
    places = [
        place for place, one in enumerate(experiments) if needs_fit(one.bucket_strategy)
    ]
    tasks = []
    for place in places:
        one = experiments[place]
        if qps is not None:
            rate = statistics.fmean(qps)
        else:
            units = one.load.unit_arrivals(seed, one.yardstick)
            rate = guess_qps(units, one.yardstick)
        load = RateTask(experiment=one, seed=seed, qps=rate, levels=levels)
        budget = max_programs or one.buckets.num_programs
        tasks.append(FitTask(load=load, max_programs=budget))
    fits = run_all(tasks, num_processes, store)
    for place, fit in zip(places, fits, strict=True):
        table = table_from_json(json.dumps(fit["table"]))
        found[place] = dataclasses.replace(found[place], buckets=table)
    return found, [fit["fit"] for fit in fits]
