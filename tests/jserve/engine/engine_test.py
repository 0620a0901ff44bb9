import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from jserve.engine.engine import Engine
from jserve.engine.packing import _cut
from jserve.engine.programs import UncompiledBucketError
from jserve_sched.buckets.table import Bucket
from jserve_sched.requests.slo import Slo
from jserve_sched.steps.features import (
    BLOCK_PAGES,
    DECODE_PAGES,
    NUM_BLOCKS,
    NUM_FEATURES,
    NUM_ROWS,
    Span,
)
from jserve_sched.steps.plan import PlanEnd, StepPlan
from tests.engine_harness import (
    TEST_TABLE,
    EngineDriver,
    make_engine,
    make_engine_scheduler,
    toy_output,
)
from tests.fakes import make_request


@pytest.fixture(scope="session")
def toy_engine(shared_programs: pathlib.Path) -> Engine:
    return make_engine("toy", programs=shared_programs)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_a_crowd_of_mixed_lengths_gets_its_own_tokens(
    toy_engine: Engine, lag: int, prefix_caching: bool
) -> None:
    scheduler = make_engine_scheduler(toy_engine, enable_prefix_caching=prefix_caching)
    driver = EngineDriver(toy_engine, scheduler, lag=lag)
    rng = np.random.default_rng(lag)
    stem = rng.integers(0, 90, 600)
    lengths = [1, 2, 31, 32, 33, 127, 128, 129, 255, 256, 300, 500, 64, 5, 96, 160, 40]
    requests = [
        make_request(prompt=stem[:length], max_tokens=int(rng.integers(1, 40)))
        for length in lengths
    ]
    driver.run(*requests)
    for request in requests:
        assert request.output_tokens == toy_output(request)
    if prefix_caching:
        assert scheduler.counters.prefix_hit_tokens > 0
    assert toy_engine.programs.num_compiles_after_warmup == 0


@pytest.mark.parametrize("policy", ["fcfs", "edf"])
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_preempted_requests_finish_with_the_tokens_they_would_have_had(
    toy_engine: Engine, policy: str, prefix_caching: bool
) -> None:
    scheduler = make_engine_scheduler(
        toy_engine,
        policy=policy,
        num_pages=9,
        enable_prefix_caching=prefix_caching,
    )
    driver = EngineDriver(toy_engine, scheduler)
    requests = [
        make_request(
            120 + i, 150, arrival_s=float(i), slo=Slo(ttft_s=1.0 + 7 * i % 4, tbt_s=1)
        )
        for i in range(6)
    ]
    driver.run(*requests)
    assert scheduler.counters.num_preemptions > 0
    for request in requests:
        assert request.output_tokens == toy_output(request)


def test_a_request_id_may_come_again(toy_engine: Engine) -> None:
    for length in (200, 300):
        driver = EngineDriver(toy_engine, make_engine_scheduler(toy_engine))
        requests = [
            make_request(length + 10 * i, 5, request_id=f"again{i}") for i in range(3)
        ]
        driver.run(*requests)
        for request in requests:
            assert request.output_tokens == toy_output(request)


def test_stop_tokens_are_not_drawn_before_min_tokens(toy_engine: Engine) -> None:
    # The toy is certain of its next token: banned, it must fall to another.
    request = make_request(prompt=[3, 5], max_tokens=6, min_tokens=4)
    request.stop_token_ids = frozenset({16, 67})
    driver = EngineDriver(toy_engine, make_engine_scheduler(toy_engine))
    driver.run(request)
    assert not set(request.output_tokens[:4]) & {16, 67}
    assert len(request.output_tokens) > 4


def test_a_bucket_that_is_not_compiled_is_an_error(toy_engine: Engine) -> None:
    plan = StepPlan(
        step_id=0,
        bucket=Bucket(3, 1),
        decodes=(),
        chunks=(),
        preempted=(),
        predicted_s=0.0,
        features=np.zeros(NUM_FEATURES),
        ended_by=PlanEnd.NO_WORK,
    )
    with pytest.raises(UncompiledBucketError, match="no program for B3xNB1"):
        toy_engine.launch(plan)


def test_padded_runs_visit_every_bucket_and_leave_what_requests_wrote(
    toy_engine: Engine,
) -> None:
    rng = np.random.default_rng(0)
    state = toy_engine._state
    kv = [rng.normal(size=part.shape).astype(part.dtype) for part in state.kv]
    slot_tokens = np.arange(len(state.slot_tokens), dtype=np.int32)
    tables = np.arange(state.tables.size, dtype=np.int32).reshape(state.tables.shape)
    toy_engine._state = state._replace(
        kv=(jnp.array(kv[0]), jnp.array(kv[1])),
        slot_tokens=jnp.array(slot_tokens),
        tables=jnp.array(tables),
    )
    for bucket in TEST_TABLE.buckets:
        toy_engine.first_run(bucket)
    samples = list(toy_engine.timed_pass(TEST_TABLE.buckets, repeats=2))
    found = {
        tuple(one.features[[NUM_ROWS, NUM_BLOCKS, DECODE_PAGES, BLOCK_PAGES]])
        for one in samples
    }
    assert found == {
        (rows, blocks, rows * decode_pages, blocks * block_pages)
        for rows, blocks in ((8, 0), (8, 4), (16, 0), (16, 4))
        for decode_pages, block_pages in ((1, 1), (16, 1), (1, 16))
    }
    assert len(samples) == 2 * (2 * 2 + 3 * 2)
    assert all(one.duration_s > 0 for one in samples)
    for before, after in zip(kv, toy_engine._state.kv, strict=True):
        np.testing.assert_array_equal(before, np.array(after))
    np.testing.assert_array_equal(slot_tokens, np.array(toy_engine._state.slot_tokens))
    np.testing.assert_array_equal(tables, np.array(toy_engine._state.tables))


@pytest.mark.parametrize(
    ("num_blocks", "num_pages", "chunks"),
    [
        (4, 15, [Span(1920, 128)]),
        (8, 15, [Span(1792, 256)]),  # there is no room for more pages before it
        (80, 0, [Span(0, 2048), Span(0, 512)]),
        (0, 15, []),
    ],
)
def test_timed_blocks_are_consecutive_parts_of_a_chunk(
    toy_engine: Engine, num_blocks: int, num_pages: int, chunks: list[Span]
) -> None:
    bucket = Bucket(8, num_blocks)
    assert toy_engine._made_up_chunks(bucket, num_pages) == chunks
    packed, tables = toy_engine._packer.pack_synthetic(
        bucket, [], chunks, is_drawn=False
    )
    *_, rows = _cut(packed.step, bucket, len(toy_engine._state.slot_tokens))
    begins = [at for one in chunks for at in range(one.start, sum(one), 32)]
    assert rows[8:, :2].tolist() == [[begin, 32] for begin in begins]
    for start, _ in chunks:  # what is before it is read, and all else discarded
        is_read = tables[-1] < toy_engine.num_pages
        assert is_read.tolist() == [page < start // 128 for page in range(16)]
