"""The predictor that an engine plans by, and its fallback.

The step-time table is filled by the timed pass at start-up, so it always exists.
`linear` starts from the table and is refitted while serving. The folder of a checkpoint
gives a trained network; if it cannot be used, there is one warning and the table is
used.
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
    """The predictor that a scheduler plans by.

    Attributes:
      predictor: Predictor that the scheduler asks.
      name: "table", "linear" or "mlp".
      fallback: Fault for which the table replaces a checkpoint; "" if it does not.
      linear: Model that is refitted; None with another predictor.
      stop: Function that ends refits, when no more steps are measured. It waits for a
        refit in progress, which takes milliseconds.
    """

    predictor: Predictor
    name: str
    fallback: str = ""
    linear: LinearPredictor | None = None
    stop: Callable[[], None] = lambda: None

    def status(self) -> PredictorStatus:
        """Returns the predictor's status, for metrics."""
        return PredictorStatus(
            name=self.name,
            fallback=self.fallback,
            num_refits=self.linear.num_refits if self.linear else 0,
            num_replaced=getattr(self.predictor, "num_replaced", 0),
        )


def choose_predictor(
    name: str,
    table: TablePredictor,
    buckets: BucketTable,
    *,
    expected: PredictorFacts,
    max_pages_per_row: int,
) -> ServingPredictor:
    """Returns the predictor that `EngineConfig.predictor` names.

    Args:
      name: "table", "linear", or the folder of a checkpoint.
      table: Table predictor, filled by the timed pass.
      expected: Facts that a checkpoint must have been measured with.
    """
    if name == "table":
        return ServingPredictor(predictor=table, name=name)
    if name == "linear":
        matrix = full_steps(
            buckets, page_size=expected.page_size, max_pages_per_row=max_pages_per_row
        )
        step_s = table.predict(matrix)
        # Refits run in another thread, so that they do not delay steps.
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
    """Returns features `[N, F]` of full steps in every bucket.

    Their contexts are one page, the longest, and one between; they are without decodes,
    without prefill, and with both.
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
