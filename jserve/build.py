"""From an EngineConfig to an EngineLoop, put together from its parts."""

import dataclasses
import functools
import hashlib
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import jax

from jserve.compiled_annealing import best_kernel
from jserve.config import EngineConfig
from jserve.engine.compile_cache import open_compile_cache
from jserve.engine.engine import Engine, kv_bytes, kv_page_bytes
from jserve.engine.followers import Leader
from jserve.engine.loop import EngineLoop
from jserve.engine.program_store import ProgramStore
from jserve.engine.recent_steps import RecentSteps
from jserve.engine.sizing import engine_shape, plan_engine
from jserve.engine.warm_up import WarmUp
from jserve.progress import Progress
from jserve.records.step_log import Header, StepRecorder
from jserve.timing.roofline_prior import first_table
from jserve.timing.serving_predictor import choose_predictor
from jserve_models.registry import load_model
from jserve_sched.buckets.table import BucketTable
from jserve_sched.memory.ledger import KvLedger
from jserve_sched.policies.annealing.policy import SearchLimit
from jserve_sched.policies.base import Policy
from jserve_sched.policies.registry import make_policy
from jserve_sched.requests.output_lengths import make_length_estimator
from jserve_sched.requests.service_class import ServiceClass
from jserve_sched.scheduler import Scheduler
from jserve_sched.timing.best import BestPredictor
from jserve_sched.timing.calibrated import CalibratedPredictor

_LOG = logging.getLogger("jserve")


def build_loop(
    config: EngineConfig,
    service_classes: Sequence[ServiceClass] = (),
    progress: Progress | None = None,
    leader: Leader | None = None,
) -> EngineLoop:
    """Loads the model and puts scheduler and engine together; compiles nothing yet.

    Args:
      service_classes: Service classes, which the step log names.
      progress: Shows how far start-up is, until the engine is warm.
      leader: Of the processes that share the model with this one; None for none.

    Raises:
      ValueError: If the model, the policy, the buckets or a limit is invalid, or
        the step log cannot be written.
    """
    progress = progress or Progress()
    # A mistake on the command line is found before anything takes long.
    lengths = make_length_estimator(config.length_estimator)
    make_policy(config.policy)
    config, plan = plan_engine(config)
    # The running engine states its strategy by name, never as "".
    config = dataclasses.replace(config, bucket_strategy=config.strategy)
    # The engine, and the times of its steps.
    progress.begin(f"loading model {config.model}")
    store = open_compile_cache(config.compile_cache_dir)
    wait = None if leader is None else leader.begin(config)
    engine = build_engine(config, store, leader)
    if wait is not None:
        wait()
    name = engine.model.attention.__name__.rpartition(".")[2]
    config = dataclasses.replace(config, attention=name)  # never "auto"
    facts = engine.predictor_facts()
    table = first_table(
        config,
        engine.model.config,
        plan.final,
        device_kind=jax.devices()[0].device_kind,
        max_model_len=engine.max_model_len,
    )
    calibrated = CalibratedPredictor(table, "table")
    predictor = BestPredictor(calibrated)
    folder = None if store is None else store.folder.parent
    times_path = folder and folder / _times_name(config, engine, plan.final)
    # The scheduler, which plans in the covering table until warm-up hands over others.
    scheduler = Scheduler(
        policy=_serving_policy(config),
        buckets=plan.covering,
        ledger=KvLedger(
            num_pages=engine.num_pages,
            page_size=config.page_size,
            enable_prefix_caching=config.enable_prefix_caching,
        ),
        predictor=predictor,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=engine.max_model_len,
        lengths=lengths,
    )
    # Warm-up, the step log, and the loop that runs all of it.
    warm_up = WarmUp(
        engine=engine,
        scheduler=scheduler,
        plan=plan,
        predictor=table,
        times_path=times_path,
        choose=functools.partial(
            choose_predictor,
            config.predictor,
            calibrated,
            expected=facts,
            max_pages_per_row=engine.max_pages_per_row,
            cache=folder,
        ),
        timing_s=config.warm_up_timing_s,
        progress=progress,
    )

    def header() -> dict[str, Any]:
        """Returns what holds for the steps that come next in the step log."""
        return {
            "block_tokens": config.block_tokens,
            "page_size": config.page_size,
            "max_num_seqs": config.max_num_seqs,
            "max_num_batched_tokens": config.max_num_batched_tokens,
            "policy": config.policy,
            "buckets": scheduler.buckets.to_json(),
            "service_classes": [
                {"name": one.name, "ttft_s": one.ttft_s, "tbt_s": one.tbt_s}
                for one in service_classes
            ],
            "step_times": None if warm_up.serving is None else table.to_json(),
            "predictor": dataclasses.asdict(facts),
        }

    return EngineLoop(
        config=config,
        engine=engine,
        scheduler=scheduler,
        warm_up=warm_up,
        records=RecentSteps(table, _open_step_log(config, header)),
    )


def _serving_policy(config: EngineConfig) -> Policy:
    """Returns the policy that serves; one that searches has its kernel compiled.

    A simulation counts the changes that a search tries, so that it can be repeated; a
    server counts milliseconds too, since its engine waits.
    """
    limit = SearchLimit(time.monotonic, config.annealing_budget_ms / 1e3 or math.inf)
    return make_policy(config.policy, make_kernel=best_kernel, limit=limit)


def build_engine(
    config: EngineConfig,
    store: ProgramStore | None = None,
    leader: Leader | None = None,
) -> Engine:
    """Loads the model and makes its engine, not yet warm, without a scheduler.

    Args:
      config: Configuration; on GPU and TPU that of `plan_engine`, which sizes the pool.
      store: Keeps the compiled programs; None keeps none.
      leader: Sends what the engine does to other processes; None has none.

    Raises:
      ValueError: If the model or a limit is invalid.
    """
    config = config.for_device(jax.default_backend())
    shape = engine_shape(config)
    _LOG.info(shape.reason)
    model = load_model(
        config.model,
        seed=config.seed,
        dtype=shape.dtype,
        weights=config.weights,
        attention=shape.attention,
        mesh=shape.mesh,
        max_len=config.max_model_len,
    )
    page_bytes = kv_page_bytes(model, config.page_size, shape.kv_dtype)
    least_bytes = kv_bytes(model, 1, config.page_size, shape.kv_dtype)
    num_pages = (config.kv_cache_bytes - least_bytes) // page_bytes + 1
    if num_pages < 1:
        raise ValueError(
            f"kv_cache_bytes={config.kv_cache_bytes} holds no KV page: a pool "
            f"of one page of {config.page_size} tokens takes {least_bytes} bytes"
        )
    return Engine(
        model=model,
        dtype=shape.dtype,
        kv_dtype=shape.kv_dtype,
        num_slots=config.max_num_seqs,
        num_pages=num_pages,
        page_size=config.page_size,
        block_tokens=config.block_tokens,
        max_model_len=shape.max_model_len,
        captures_logits=config.capture_logits,
        store=store,
        leader=leader,
    )


def _times_name(config: EngineConfig, engine: Engine, table: BucketTable) -> str:
    """Returns the file of step times: one for each table, model and pool."""
    measured = engine.predictor_facts()
    facts = (
        *(repr(engine.model.config), measured.dtype, measured.device_kind),
        config.page_size,
        *(config.kv_cache_bytes, engine.max_model_len, table),
        engine.model.attention.__name__,
    )
    digest = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    return f"step_times_{digest}.json"


def _open_step_log(config: EngineConfig, header: Header) -> StepRecorder | None:
    if config.step_log is None:
        return None
    try:
        return StepRecorder(config.step_log, header, config.step_log_max_bytes)
    except (OSError, ValueError) as error:
        raise ValueError(f"step_log={str(config.step_log)!r}: {error}") from None
