"""From an EngineConfig to an EngineLoop: the one place where the parts meet."""

import hashlib
import json
import logging
import os
import pathlib
import platform

import jax
import jax.numpy as jnp

from jserve.config import EngineConfig
from jserve.engine import Engine, kv_page_bytes
from jserve.loop import EngineLoop
from jserve.predictor_checkpoint import PredictorFacts
from jserve.serving_predictor import ServingPredictor, choose_predictor
from jserve_models.registry import load_model
from jserve_sched.buckets import (
    STRATEGIES,
    BucketStrategy,
    BucketTable,
    Explicit,
    table_from_json,
)
from jserve_sched.ledger import KvLedger
from jserve_sched.policies import make_policy
from jserve_sched.scheduler import Scheduler
from jserve_sched.table_predictor import TablePredictor

_LOG = logging.getLogger("jserve")


def build_loop(config: EngineConfig) -> EngineLoop:
    """Loads the model and puts scheduler and engine together; compiles nothing yet.

    Raises:
      ValueError: if the model, the policy, the buckets or a limit is no good.
    """
    policy = make_policy(config.policy)
    engine = build_engine(config)
    model, table = engine.model, engine.programs.table
    scheduler = Scheduler(
        policy=policy,
        buckets=table,
        ledger=KvLedger(
            num_pages=engine.num_pages,
            page_size=config.page_size,
            enable_prefix_caching=config.enable_prefix_caching,
        ),
        predictor=TablePredictor(
            table, max_pages_per_row=-(-engine.max_model_len // config.page_size)
        ),
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=engine.max_model_len,
    )
    times_file = None
    cache_dir = _cache_dir(config)
    if cache_dir is not None:
        times_file = cache_dir / f"step_times_{_times_key(config, model.config)}.json"
    return EngineLoop(
        config=config,
        engine=engine,
        scheduler=scheduler,
        prepare=_Preparation(
            times_file,
            config.predictor,
            PredictorFacts.here(
                model.config,
                dtype=engine.dtype.name,
                page_size=config.page_size,
                block_tokens=table.block_tokens,
            ),
        ),
    )


def build_engine(config: EngineConfig) -> Engine:
    """Loads the model and makes its engine, not yet warm, without a scheduler.

    Raises:
      ValueError: if the model, the buckets or a limit is no good.
    """
    table = bucket_table(config)
    cache_dir = _cache_dir(config)
    if cache_dir is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    dtype = resolve_dtype(config.dtype)
    model = load_model(config.model, seed=config.seed, dtype=dtype)
    max_model_len = config.max_model_len or model.config.max_model_len
    if max_model_len > model.config.max_model_len:
        raise ValueError(
            f"max_model_len={max_model_len} exceeds the {model.config.max_model_len} "
            f"that model {config.model!r} was made for"
        )
    page_bytes = kv_page_bytes(model, config.page_size, dtype)
    num_pages = config.kv_cache_bytes // page_bytes
    if num_pages < 1:
        raise ValueError(
            f"kv_cache_bytes={config.kv_cache_bytes} holds no KV page: one of "
            f"{config.page_size} tokens takes {page_bytes} bytes"
        )
    return Engine(
        model=model,
        dtype=dtype,
        table=table,
        num_slots=config.max_num_seqs,
        num_pages=num_pages,
        page_size=config.page_size,
        max_model_len=max_model_len,
        captures_logits=config.capture_logits,
    )


def bucket_table(config: EngineConfig) -> BucketTable:
    """Returns the shapes to compile.

    Raises:
      ValueError: if the strategy is unknown, or the bucket file is no good.
    """
    if config.buckets is not None:
        try:
            table = table_from_json(config.buckets.read_text())
        except OSError as error:
            raise ValueError(f"buckets={str(config.buckets)!r}: {error}") from None
        strategy: BucketStrategy = Explicit(
            row_edges=table.row_edges, block_edges=table.block_edges
        )
        if table.block_tokens != config.block_tokens:
            raise ValueError(
                f"block_tokens={config.block_tokens}, but the bucket file says "
                f"{table.block_tokens}"
            )
    else:
        if config.bucket_strategy not in STRATEGIES:
            raise ValueError(
                f"bucket_strategy {config.bucket_strategy!r} is unknown; known: "
                f"{sorted(STRATEGIES)}"
            )
        strategy = STRATEGIES[config.bucket_strategy]
    return strategy.table(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_tokens=config.block_tokens,
    )


def resolve_dtype(name: str) -> jnp.dtype:
    """Returns the dtype of weights and KV that `name` means on this backend."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    elif name == "bfloat16" and jax.default_backend() == "cpu":
        version = tuple(int(part) for part in jax.__version__.split(".")[:3])
        if version < (0, 11, 2):
            _LOG.warning(
                "bfloat16 on CPU is many times slower before jax 0.11.2 (this is %s): "
                "each step converts the whole KV pool; float32 is the better choice",
                jax.__version__,
            )
    return jnp.dtype(name)


def _cache_dir(config: EngineConfig) -> pathlib.Path | None:
    """Returns the cache folder of this jax and device, or None without one.

    Compiled programs are code for one device kind and one host CPU, so the folder is
    named by them; a folder that cannot be made is done without.
    """
    if not config.compile_cache_dir:
        return None
    device = jax.devices()[0]
    host = f"{platform.machine()}-{_cpu_model()}"
    key = f"{jax.__version__}-{device.platform}-{device.device_kind}-{host}"
    name = "".join(c if c.isalnum() or c in ".-" else "_" for c in key)
    folder = pathlib.Path(config.compile_cache_dir).expanduser() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _LOG.warning("no compile cache: %s", error)
        return None
    return folder


def _cpu_model() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = [row for row in text.splitlines() if row.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.processor()


def _times_key(config: EngineConfig, model_config: object) -> str:
    facts = (
        *(repr(model_config), config.dtype, config.page_size, config.kv_cache_bytes),
        os.cpu_count(),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


class _Preparation:
    """Warms an engine up, measures step times, and picks the predictor."""

    def __init__(
        self, times_file: pathlib.Path | None, name: str, expected: PredictorFacts
    ):
        self._times_file = times_file
        self._name = name
        self._expected = expected

    def __call__(self, engine: Engine, scheduler: Scheduler) -> ServingPredictor:
        engine.warm_up()
        _LOG.info(
            "%d programs in %.1f s, %d of them from the compile cache",
            engine.programs.num_compiled,
            engine.programs.wall_s,
            engine.programs.num_cache_hits,
        )
        table = scheduler.predictor
        assert isinstance(table, TablePredictor)
        if not self._load(table):
            table.fit(engine.timed_pass())
            self._save(table)
        serving = choose_predictor(
            self._name,
            table,
            buckets=scheduler.buckets,
            expected=self._expected,
            max_pages_per_row=-(-scheduler.max_model_len // engine.page_size),
        )
        scheduler.predictor = serving.predictor
        return serving

    def _load(self, predictor: TablePredictor) -> bool:
        if self._times_file is None:
            return False
        try:
            return predictor.load_json(json.loads(self._times_file.read_text()))
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError) as error:
            _LOG.warning("step times of an earlier start are unreadable: %s", error)
            return False

    def _save(self, predictor: TablePredictor) -> None:
        if self._times_file is None:
            return
        draft = self._times_file.with_suffix(".tmp")
        try:
            draft.write_text(json.dumps(predictor.to_json()))
            draft.replace(self._times_file)
        except OSError as error:
            _LOG.warning("step times are not saved: %s", error)
