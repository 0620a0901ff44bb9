"""Every backend gives the tokens of the CPU's, whatever the engine does to requests."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from jserve.engine.engine import Engine, PendingStep
from jserve_models.attention import (
    AttentionBackend,
    cpu,
    gpu,
    page_loop,
    paged_mosaic,
    tpu,
)
from jserve_models.attention.paged_mosaic import plgpu
from jserve_models.config import NAMED
from jserve_models.decoder import Decoder
from jserve_models.random_weights import draw_weights
from jserve_models.registry import LoadedModel, decoder_model
from jserve_models.sharding import make_mesh
from jserve_sched.buckets.table import BucketTable
from jserve_sched.requests.request import Request
from jserve_sched.steps.plan import StepPlan
from tests.engine_harness import EngineDriver, make_engine, make_engine_scheduler
from tests.fakes import make_request
from tests.models.attention import mosaic
from tests.ragged_attention import traceable_kernel

TABLE = BucketTable((4,), (0, 3), 16)
NUM_PAGES = 9  # too few for four rows


def make_model(backend: AttentionBackend) -> LoadedModel:
    config = dataclasses.replace(
        NAMED["tiny"],
        num_layers=1,
        hidden_size=64,
        num_heads=4,
        num_kv_heads=2,
        intermediate_size=64,
    )
    structure = Decoder(config, backend)
    hosts = draw_weights(structure.leaves, 0, np.float32)
    mesh = make_mesh()
    pairs = zip(structure.leaves, hosts, strict=True)
    return decoder_model(structure, [leaf.place(host, mesh) for leaf, host in pairs])


def checking_tables(engine: Engine) -> Callable[[StepPlan], PendingStep]:
    """A launch after which each row's page table on the device is its request's."""
    launch = engine.launch

    def launch_and_check(plan: StepPlan) -> PendingStep:
        pending = launch(plan)
        tables = np.asarray(engine._state.tables)
        for request in {row.request for row in (*plan.decodes, *plan.chunks)}:
            assert request.slot is not None
            found = tables[request.slot]
            unused = [engine.num_pages] * (len(found) - len(request.pages))
            assert found.tolist() == request.pages + unused
        assert np.all(tables[-1] == engine.num_pages)
        return pending

    return launch_and_check


def serve(
    backend: AttentionBackend, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[list[int]], Engine]:
    """Returns the tokens of requests of one stem, one step ahead in a small pool."""
    engine = make_engine(
        make_model(backend),
        table=TABLE,
        num_pages=NUM_PAGES,
        page_size=32,
        max_model_len=256,
    )
    scheduler = make_engine_scheduler(engine, table=TABLE, enable_prefix_caching=True)
    monkeypatch.setattr(engine, "launch", checking_tables(engine))
    driver = EngineDriver(engine, scheduler, lag=1)
    stem = np.random.default_rng(0).integers(0, 256, 170)
    lengths = (120, 60, 100, 64, 1)
    requests: list[Request] = [
        # Their ids decide between requests that come together.
        make_request(
            request_id=str(index), prompt=stem[:length], max_tokens=12 + 3 * index
        )
        for index, length in enumerate(lengths)
    ]
    driver.run(*requests)
    assert scheduler.counters.num_preemptions > 0
    assert scheduler.counters.prefix_hit_tokens > 0
    return [request.output_tokens for request in requests], engine


@pytest.fixture(scope="module")
def wanted() -> Iterator[list[list[int]]]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield serve(cpu, monkeypatch)[0]


@pytest.fixture
def kernels_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The TPU's kernel is replaced, and NVIDIA's is interpreted, and takes float32."""
    monkeypatch.setattr(tpu, "_kernel", traceable_kernel)
    kernel = paged_mosaic.paged_attention

    def interpreted(*arrays: Any, **options: Any) -> jax.Array:
        with mosaic.interpreted(detects_races=False):
            return kernel(*arrays, num_splits=1, **options)

    # Which no tensor core multiplies, and no transform of shared memory holds.
    monkeypatch.setattr(paged_mosaic, "DTYPES", ("float32",))
    monkeypatch.setattr(
        paged_mosaic, "_shared", lambda shape, dtype, _: plgpu.SMEM(shape, dtype)
    )
    monkeypatch.setattr(paged_mosaic, "paged_attention", interpreted)


@pytest.mark.usefixtures("quick_compiler", "kernels_on_cpu")
@pytest.mark.parametrize(
    "backend",
    [page_loop, tpu, pytest.param(gpu, marks=pytest.mark.aot)],
    ids=["page_loop", "tpu", "gpu"],
)
def test_tokens_are_those_of_the_cpu(
    backend: AttentionBackend,
    wanted: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens, engine = serve(backend, monkeypatch)
    assert tokens == wanted
    assert engine.programs.num_compiles_after_warmup == 0
