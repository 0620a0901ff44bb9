"""The predictor that an engine plans by.

The step-time table is filled by the timed pass at start-up, so it always exists, and
stands in for what another cannot predict. `linear` starts from the table and is
refitted while serving. `auto` starts from the table too, or from the network that an
earlier server kept; networks are trained on its steps, and the better one predicts. The
folder of a checkpoint gives a network for good.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import logging
import pathlib
from collections.abc import Callable

import numpy as np

from jserve.records.events import PredictorStatus
from jserve.timing.checkpoint import (
    FORMAT_VERSION,
    CheckpointError,
    PredictorFacts,
    load_checkpoint,
)
from jserve.timing.idle_process import IdleProcess
from jserve_sched.buckets.table import BucketTable
from jserve_sched.steps.features import uniform_features
from jserve_sched.timing.auto import AutoPredictor, calibrated, is_near
from jserve_sched.timing.best import BestPredictor
from jserve_sched.timing.calibrated import CalibratedPredictor
from jserve_sched.timing.linear import LinearPredictor, fit_linear
from jserve_sched.timing.mlp import MlpWeights

_LOG = logging.getLogger("jserve")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServingPredictor:
    """The predictor that a scheduler plans by.

    Attributes:
      predictor: Predictor that the scheduler asks.
      name: "table", "linear", "mlp" or "auto".
      fallback: Fault for which a checkpoint is not used; "" if there is none.
      num_refits: Function that returns how many models were fitted or trained.
      stop: Function that ends refits and trainings, when no more steps are measured.
    """

    predictor: BestPredictor
    name: str
    fallback: str = ""
    num_refits: Callable[[], int] = lambda: 0
    stop: Callable[[], None] = lambda: None

    def status(self) -> PredictorStatus:
        """Returns the predictor's status, for metrics."""
        kinds = self.predictor.errors().items()
        return PredictorStatus(
            name=self.name,
            fallback=self.fallback,
            num_refits=self.num_refits(),
            num_replaced=self.predictor.num_replaced,
            kinds={kind: errors._asdict() for kind, errors in kinds},
        )


def choose_predictor(
    name: str,
    table: CalibratedPredictor,
    buckets: BucketTable,
    *,
    expected: PredictorFacts,
    max_pages_per_row: int,
    cache: pathlib.Path | None = None,
) -> ServingPredictor:
    """Returns the predictor that `EngineConfig.predictor` names.

    Args:
      name: "table", "linear", "auto", or the folder of a checkpoint.
      table: Table predictor, filled by the timed pass.
      expected: Facts that a checkpoint must have been measured with.
      cache: Folder in which `auto` keeps its network; None keeps none.
    """
    if name == "table":
        return ServingPredictor(predictor=BestPredictor(table), name=name)
    matrix = full_steps(
        buckets, page_size=expected.page_size, max_pages_per_row=max_pages_per_row
    )
    step_s = table.predict(matrix)
    # Refits run in another thread, so that they do not delay steps.
    thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="refit")
    shutdown = functools.partial(thread.shutdown, cancel_futures=True)
    if name == "linear":
        linear = LinearPredictor(
            fit_linear(matrix, step_s, min_expert_samples=1),
            anchors=np.column_stack((matrix, step_s)),
            submit=thread.submit,
        )
        one = CalibratedPredictor(linear, name)
        return ServingPredictor(
            predictor=BestPredictor(table, one, is_judging=False),
            name=name,
            num_refits=lambda: linear.num_refits,
            stop=shutdown,
        )
    if name != "auto":
        weights, fault = _load(pathlib.Path(name), expected, matrix, step_s)
        network = None if weights is None else calibrated(weights)
        return ServingPredictor(
            predictor=BestPredictor(table, network, is_judging=False),
            name="mlp" if network else "table",
            fallback=fault,
        )

    # Networks are trained on this server's steps, in another process.
    weights, fault, folder = None, "", None
    if cache is not None:
        facts = dataclasses.replace(expected, jax_version="")
        digest = hashlib.sha256(repr((FORMAT_VERSION, facts)).encode()).hexdigest()
        folder = cache / f"predictor_{digest[:12]}"
        if (folder / "checkpoint").exists():
            weights, fault = _load(folder, expected, matrix, step_s)
    process = IdleProcess()
    auto = AutoPredictor(
        table,
        weights,
        anchors=matrix,
        train=functools.partial(process.run, "jserve.timing.training:train_network"),
        keep=functools.partial(
            process.run, "jserve.timing.checkpoint:save_checkpoint", folder, expected
        )
        if folder
        else None,
        submit=thread.submit,
    )

    def stop() -> None:
        process.stop()
        shutdown()

    return ServingPredictor(
        predictor=auto,
        name=name,
        fallback=fault,
        num_refits=lambda: auto.num_trained,
        stop=stop,
    )


def _load(
    folder: pathlib.Path,
    expected: PredictorFacts,
    matrix: np.ndarray,
    table_s: np.ndarray,
) -> tuple[MlpWeights | None, str]:
    """Returns a checkpoint's network; or None and the fault, with one warning.

    Its times of steps `[N, F]` must be like the table's `[N]`, seconds.
    """
    try:
        weights, facts = load_checkpoint(folder, expected=expected)
        if not is_near(weights, matrix, table_s):
            raise CheckpointError(folder, "wrong", "is far from what was timed here")
    except CheckpointError as error:
        _LOG.warning("%s: steps are priced by the step-time table instead", error)
        return None, error.fault
    _LOG.info("steps are priced by %s, trained at commit %r", folder, facts.commit)
    return weights, ""


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
