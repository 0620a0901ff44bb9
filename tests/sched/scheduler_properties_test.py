"""What must hold whatever the workload: checked after every step of random ones."""

import types
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jserve_sched.buckets.table import BucketTable
from jserve_sched.requests.output_lengths import make_length_estimator
from jserve_sched.requests.request import FinishReason, Request, RequestState
from jserve_sched.requests.slo import Slo
from jserve_sched.scheduler import Scheduler
from jserve_sched.steps import features
from jserve_sched.steps.plan import PlanEnd, StepPlan
from jserve_sched.timing.predictor import Predictor
from tests.fakes import (
    Driver,
    check_integrity,
    expected_output,
    make_request,
    make_scheduler,
)
from tests.step_costs import Staircase

SPECS = (
    *("fcfs", "edf", "sjf", "qoserve", "sliding", "edf:chunk_tokens=12"),
    "sliding:published=on",
    "sliding:published=on:constructor=off",
    "sliding:sorter=off:constructor=off",
    *("ontime", "ontime:max_age_s=0.05"),
    *("laxity", "annealing:proposals=20"),
    "annealing:proposals=20:max_age_s=0.5",
)

TABLES = (
    BucketTable((2, 4, 8), (0, 1, 2, 4), block_tokens=4),
    BucketTable((3,), (0, 5), block_tokens=4),
    BucketTable((1, 6), (0, 3, 7), block_tokens=2),
    BucketTable((1, 3, 8), (0, 1, 2, 6, 8), block_tokens=4, max_tokens=33),
    BucketTable((2, 5, 6), (0, 2, 3, 9), block_tokens=4, max_tokens=39),
)


class KnownShapes:
    """A predictor that may be asked only about buckets that exist."""

    def __init__(self, inner: Predictor, table: BucketTable):
        self.inner, self.update = inner, inner.update
        self.buckets = {(one.num_rows, one.num_blocks) for one in table.buckets}

    def _check(self, matrix: np.ndarray) -> None:
        columns = [features.NUM_ROWS, features.NUM_BLOCKS]
        assert {(int(b), int(nb)) for b, nb in matrix[:, columns]} <= self.buckets

    def predict(self, matrix: np.ndarray) -> np.ndarray:
        self._check(matrix)
        return self.inner.predict(matrix)

    def predict_upper(self, matrix: np.ndarray) -> np.ndarray:
        self._check(matrix)
        return self.inner.predict_upper(matrix)


class Workload(types.SimpleNamespace):
    """The fields of `workloads`."""


workloads = st.builds(
    Workload,
    policy=st.sampled_from(SPECS),
    table=st.sampled_from(TABLES),
    num_pages=st.integers(8, 40),
    lag=st.integers(0, 1),
    enable_prefix_caching=st.booleans(),
    seed=st.integers(0, 2**31),
    num_requests=st.integers(1, 14),
    # Rows of the largest bucket that may not be used, and blocks of it that the token
    # limit forbids.
    spare_rows=st.integers(0, 2),
    spare_blocks=st.integers(0, 3),
    # Predicted time of a block; 0 leaves it to the table's guess.
    block_s=st.sampled_from([0.0, 0.0, 0.004, 0.05]),
    lengths=st.sampled_from(["max_tokens", "mean"]),
)

PAGE_SIZE = 8


def make_requests(workload: Workload) -> list[Request]:
    """Requests of random sizes, some with common prefixes, arriving in bursts."""
    rng = np.random.default_rng(workload.seed)
    most = min(workload.num_pages * PAGE_SIZE, 96)
    stems = rng.integers(0, 90, (2, most))
    arrival_s = 0.0
    requests = []
    for index in range(workload.num_requests):
        arrival_s += float(rng.choice([0.0, 0.0, 0.02, 0.3]))
        max_tokens = int(rng.integers(1, min(24, most - 1)))
        num_prompt = int(rng.integers(1, most - max_tokens + 1))
        stem = stems[index % 2].copy()
        cut = int(rng.integers(0, num_prompt + 1))
        stem[cut:] = rng.integers(0, 90, most - cut)
        bound_s = float(rng.uniform(0.01, 2))
        slo = Slo(ttft_s=bound_s, tbt_s=0.05)
        if rng.random() < 0.3:
            slo = Slo(ttlt_s=bound_s)
        requests.append(
            make_request(
                prompt=stem[:num_prompt],
                max_tokens=max_tokens,
                arrival_s=arrival_s,
                slo=slo if rng.random() < 0.7 else Slo(),
                guard=bool(rng.random() < 0.1),
                stop_token_ids=frozenset(rng.integers(0, 97, 2).tolist()),
            )
        )
    return requests


def check_plan(workload: Workload, scheduler: Scheduler, plan: StepPlan) -> None:
    """Limits hold, requests appear once, and an unfilled block has its reason."""
    bucket = plan.bucket
    assert bucket in scheduler.buckets.buckets
    assert bucket.num_tokens <= scheduler.view(0.0).max_num_batched_tokens
    assert len(plan.decodes) <= bucket.num_rows
    assert plan.num_blocks <= bucket.num_blocks
    assert bucket == scheduler.buckets.fit(len(plan.decodes), plan.num_blocks)
    placed = [row.request for row in (*plan.decodes, *plan.chunks)]
    ids = {request.request_id for request in placed}
    assert len(ids) == len(placed), "a request is planned twice"
    assert not ids & {victim.request_id for victim in plan.preempted}
    for victim in plan.preempted:
        assert victim.num_plans_in_flight == 0, "a victim is in flight"
    for row in (*plan.decodes, *plan.chunks):
        assert row.stop <= row.request.num_projected_tokens
        assert row.draws_token == (row.stop == row.request.num_projected_tokens)
        assert row.request.num_outputs_projected < row.request.max_tokens
    if plan.num_blocks == bucket.num_blocks:
        return
    view = scheduler.view(0.0)
    free_slots = view.num_free_slots
    admitted = sum(r.state is RequestState.WAITING for r in placed)
    if plan.ended_by is PlanEnd.NO_WORK:
        assert all(r.request_id in ids for r in view.waiting)
        for row in plan.chunks:
            assert row.stop == row.request.num_projected_tokens, (
                "a prompt was cut short"
            )
    elif plan.ended_by is PlanEnd.ROWS:
        assert admitted == free_slots
    elif plan.ended_by is PlanEnd.PAGES:
        # One block more of the next prompt would not fit: either the pool is owed to
        # running prompts, or pages of preempted requests are not free before the next.
        ledger = scheduler.ledger
        owed = sum(
            ledger.pages_for(r.num_projected_tokens) - len(r.pages)
            for r in view.running
            if r.num_remaining_tokens > 1
        )
        taken = sum(
            max(ledger.pages_for(row.stop) - len(row.request.pages), 0)
            for row in (*plan.decodes, *plan.chunks)
        )
        waiting = [r for r in view.waiting if r.request_id not in ids]
        largest = max(
            (ledger.pages_for(r.num_known_tokens) for r in waiting), default=0
        )
        assert plan.preempted or largest + owed + taken + 1 > ledger.num_available
    elif plan.ended_by is PlanEnd.TIME_LIMIT:
        names = ("qoserve", "sliding", "ontime")
        assert workload.policy.startswith(names)
    elif plan.ended_by is PlanEnd.TOKEN_LIMIT:
        assert "chunk_tokens" in workload.policy
    else:
        raise AssertionError(f"{plan.ended_by} leaves padded blocks")


def run_workload(
    workload: Workload, each_step: Callable[[Driver], None] = lambda driver: None
) -> tuple[Driver, list[Request]]:
    table = workload.table
    # At least the smallest prefill fits.
    blocks = max(table.max_blocks - workload.spare_blocks, table.block_edges[1])
    scheduler = make_scheduler(
        policy=workload.policy,
        table=table,
        num_pages=workload.num_pages,
        page_size=PAGE_SIZE,
        enable_prefix_caching=workload.enable_prefix_caching,
        max_model_len=128,
        max_num_seqs=table.max_rows - workload.spare_rows,
        max_num_batched_tokens=table.max_rows + blocks * table.block_tokens,
        lengths=make_length_estimator(workload.lengths),
    )
    if workload.block_s:
        scheduler.predictor = Staircase(lambda blocks: 0.01 + workload.block_s * blocks)
    scheduler.predictor = KnownShapes(scheduler.predictor, table)
    driver = Driver(scheduler, lag=workload.lag)
    driver.on_plan = lambda plan: check_plan(workload, scheduler, plan)
    requests = make_requests(workload)
    waiting = list(requests)
    for _ in range(20_000):
        while waiting and (
            waiting[0].arrival_s <= driver.now_s or not scheduler.has_work
        ):
            driver.clock.advance(max(waiting[0].arrival_s - driver.now_s, 0.0))
            scheduler.submit(waiting.pop(0))
        if not scheduler.has_work:
            return driver, requests
        assert driver.step(), "work is left, but nothing can run"
        each_step(driver)
    raise AssertionError("a request never finished")


@settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(workloads)
def test_every_request_finishes_once_with_its_own_tokens(workload: Workload) -> None:
    driver, requests = run_workload(workload)
    assert sorted(r.request_id for r in driver.finished) == sorted(
        r.request_id for r in requests
    )
    for request in requests:
        assert request.output_tokens == expected_output(request)
    assert driver.scheduler.ledger.num_available == workload.num_pages


@settings(max_examples=100, deadline=None, derandomize=True)
@given(workloads, st.randoms(use_true_random=False))
def test_cancelling_at_any_moment_loses_nothing(workload: Workload, random) -> None:
    cancelled: list[str] = []

    def maybe_cancel(driver: Driver) -> None:
        view = driver.scheduler.view(driver.now_s)
        live = [*view.running, *view.waiting]
        if live and random.random() < 0.2:
            chosen = random.choice(live).request_id
            output = driver.scheduler.cancel(chosen)
            assert output is not None
            cancelled.append(chosen)
            check_integrity(driver.scheduler)

    driver, requests = run_workload(workload, maybe_cancel)
    finished = [r.request_id for r in driver.finished]
    assert sorted(finished + cancelled) == sorted(r.request_id for r in requests)
    for request in requests:
        expected = expected_output(request)
        assert request.output_tokens == expected[: len(request.output_tokens)]
        if request.finish_reason is not FinishReason.CANCELLED:
            assert request.output_tokens == expected
    assert driver.scheduler.ledger.num_available == workload.num_pages


@settings(max_examples=100, deadline=None, derandomize=True)
@given(workloads)
def test_planning_changes_nothing_and_repeats_itself(workload: Workload) -> None:
    def plan_twice(driver: Driver) -> None:
        scheduler = driver.scheduler
        first, second = scheduler.plan(driver.now_s), scheduler.plan(driver.now_s)
        assert first == second
        check_integrity(scheduler)

    run_workload(workload, plan_twice)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(workloads)
def test_fcfs_admits_in_order_of_arrival(workload: Workload) -> None:
    workload.policy = "fcfs"
    _, requests = run_workload(workload)
    requests.sort(key=lambda one: (one.arrival_s, one.request_id))
    starts_s: list[Any] = [one.first_scheduled_s for one in requests]
    assert starts_s == sorted(starts_s)
