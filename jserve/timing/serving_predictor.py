"""Which predictor an engine plans by, and what happens when it cannot be used.

The step-time table of the timed pass always exists, so everything else may fail.
`linear` starts from the table and is refitted while serving; the folder of a checkpoint
is a trained network, or else one warning, and the table.
"""

import concurrent.futures
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable

import numpy as np

from jserve.records.events import PredictorStatus
from jserve.timing.checkpoint import CheckpointError, PredictorFacts, load_checkpoint
from jserve_sched.buckets.table import BucketTable
from jserve_sched.steps.features import uniform_features
from jserve_sched.timing.linear import LinearPredictor, fit_linear
from jserve_sched.timing.mlp import MlpPredictor
from jserve_sched.timing.predictor import Predictor, SafePredictor
from jserve_sched.timing.table import TablePredictor

_LOG = logging.getLogger("jserve")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingPredictor:
    """The predictor that plans.

    Attributes:
      predictor: Answers the scheduler.
      name: "table", "linear" or "mlp".
      fallback: Why the table stands in for a checkpoint; "" if it does not.
      linear: The model that is refitted, if that plans.
      stop: Ends the refits, once no step is measured any more; waits for one in
        progress, which takes milliseconds.
    """

    predictor: Predictor
    name: str
    fallback: str = ""
    linear: LinearPredictor | None = None
    stop: Callable[[], None] = lambda: None

    def status(self) -> PredictorStatus:
        """Returns a snapshot for metrics."""
        return PredictorStatus(
            name=self.name,
            fallback=self.fallback,
            num_refits=self.linear.num_refits if self.linear else 0,
            num_replaced=getattr(self.predictor, "num_replaced", 0),
        )


def choose_predictor(
    name: str,
    table: TablePredictor,
    *,
    buckets: BucketTable,
    expected: PredictorFacts,
    max_pages_per_row: int,
) -> ServingPredictor:
    """Returns the predictor that `EngineConfig.predictor` asks for.

    Args:
      name: "table", "linear", or the folder of a checkpoint.
      table: Filled by the timed pass.
      buckets: The compiled shapes.
      expected: Facts that a checkpoint must have been measured with.
      max_pages_per_row: KV pages of the longest context.
    """
    if name == "table":
        return ServingPredictor(predictor=table, name=name)
    if name == "linear":
        matrix = full_steps(
            buckets, page_size=expected.page_size, max_pages_per_row=max_pages_per_row
        )
        step_s = table.predict(matrix)
        # Refits run beside the engine's thread, never in its way.
        refits = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="refit")
        linear = LinearPredictor(
            fit_linear(matrix, step_s, min_expert_samples=1),
            anchors=np.column_stack((matrix, step_s)),
            submit=refits.submit,
        )
        return ServingPredictor(
            predictor=SafePredictor(linear, table),
            name=name,
            linear=linear,
            stop=functools.partial(refits.shutdown, cancel_futures=True),
        )
    try:
        weights, facts = load_checkpoint(pathlib.Path(name), expected=expected)
    except CheckpointError as error:
        _LOG.warning("%s: steps are priced by the step-time table instead", error)
        return ServingPredictor(predictor=table, name="table", fallback=error.fault)
    _LOG.info("steps are priced by %s, trained at commit %r", name, facts.commit)
    safe = SafePredictor(MlpPredictor(weights), table)
    return ServingPredictor(predictor=safe, name="mlp")


def full_steps(
    buckets: BucketTable, *, page_size: int, max_pages_per_row: int
) -> np.ndarray:
    """Returns features `[N, F]` of full steps of every compiled shape.

    At one page, at the longest context and between; without decodes, without prefill
    and with both.
    """
    pages = sorted({1, max(round(max_pages_per_row**0.5), 1), max_pages_per_row})
    return np.stack(
        [
            uniform_features(
                bucket,
                decode_pages=decode_pages,
                block_pages=block_pages,
                page_size=page_size,
            )
            for bucket in buckets.buckets
            for decode_pages in (0, *pages)
            for block_pages in ((0, *pages) if bucket.num_blocks else (0,))
            if decode_pages or block_pages
        ]
    )
