import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from jserve.engine.loop import EngineLoop
from jserve.records.events import Health, NotServingError, QueueFullError
from jserve_models.toy import MARGIN, TOY, toy_next_token
from jserve_sched.policies.registry import POLICIES, make_policy
from jserve_sched.requests.limits import TooLongError
from jserve_sched.requests.request import FinishReason, Request, SamplingParams
from jserve_sched.requests.slo import Slo
from tests.engine_harness import Inbox, build_toy_loop, start, toy_output
from tests.fakes import make_request


@pytest.fixture(scope="module")
def loop(shared_programs: pathlib.Path) -> Iterator[EngineLoop]:
    loop = build_toy_loop(shared_programs, max_queued_requests=60)
    with pytest.raises(NotServingError, match="starting"):
        loop.submit(make_request())
    start(loop, Health.WARM)
    yield loop
    loop.stop()


@pytest.fixture
def inbox(loop: EngineLoop) -> Inbox:
    inbox = Inbox()
    loop.set_listener(inbox)
    return inbox


def settle(loop: EngineLoop) -> None:
    """Waits for the last record: it is written just after its tokens are published."""
    num_steps = -1
    while num_steps != loop.stats().num_steps:
        num_steps = loop.stats().num_steps
        time.sleep(0.05)


LIFO = "examples.lifo_policy.LastComeFirstServed"


@pytest.mark.parametrize("policy", [*sorted(POLICIES), LIFO])
def test_every_policy_serves_a_crowd_of_all_kinds(
    loop: EngineLoop, inbox: Inbox, policy: str
) -> None:
    rng = np.random.default_rng(2)
    slos = (Slo(), Slo(ttft_s=2.0, tbt_s=0.5), Slo(ttlt_s=3.0), Slo(ttft_s=1e-6))
    scheduler = loop._scheduler
    before = scheduler.policy
    assert loop.stats().searches.num_searches == 0
    looks_ahead = policy.startswith("annealing")
    scheduler.policy = make_policy(policy + ":proposals=50" * looks_ahead)
    try:
        requests = [
            make_request(
                int(rng.integers(1, 250)),
                int(rng.integers(1, 12)),
                arrival_s=time.monotonic(),
                slo=slos[index % len(slos)],
                guard=index % 7 == 0,
            )
            for index in range(42)
        ]
        for request in requests:
            loop.submit(request)
        inbox.wait_for(*requests, timeout_s=100.0)
        stats = loop.stats()
    finally:
        scheduler.policy = before
    for request in requests:
        assert inbox.tokens(request) == toy_output(request)
    assert stats.num_compiles_after_warmup == 0
    assert stats.num_free_pages == stats.num_pages
    for batch in inbox.batches:  # one call for each step
        assert len({event.request_id for event in batch}) == len(batch)
    assert (stats.searches.num_searches > 0) == looks_ahead


def test_every_step_is_on_record(loop: EngineLoop, inbox: Inbox) -> None:
    settle(loop)
    first = loop.stats().num_steps
    request = make_request(prompt=range(200), max_tokens=8, arrival_s=time.monotonic())
    loop.submit(request)
    inbox.wait_for(request)
    settle(loop)
    steps = loop.steps(since=first)
    assert [one.step_id for one in steps] == list(range(first, first + len(steps)))
    assert sum(one.prefill_tokens for one in steps) == 200
    assert sum(one.used_rows for one in steps) == 7
    for one in steps:
        assert one.used_rows <= one.num_rows and one.used_blocks <= one.num_blocks
        assert one.duration_s > 0 and one.predicted_s > 0
        assert 0 < one.used_s <= one.bucket_s * 1.001


def test_a_cancelled_request_ends_and_gives_its_pages_back(
    loop: EngineLoop, inbox: Inbox
) -> None:
    request = make_request(50, 1500, arrival_s=time.monotonic())
    loop.submit(request)
    inbox.wait_for_token(request)
    loop.cancel(request.request_id)
    loop.cancel("nobody")
    inbox.wait_for(request)
    last = inbox.events[request.request_id][-1]
    assert (last.token, last.finish_reason) == (None, FinishReason.CANCELLED)
    after = make_request(5, 2, arrival_s=time.monotonic())
    loop.submit(after)
    inbox.wait_for(after)
    assert loop.stats().num_free_pages == loop.stats().num_pages


def test_an_id_in_use_or_a_request_too_long_is_refused(
    loop: EngineLoop, inbox: Inbox
) -> None:
    request = make_request(50, 400, request_id="same", arrival_s=time.monotonic())
    loop.submit(request)
    with pytest.raises(ValueError, match="'same' is in use"):
        loop.submit(make_request(5, 2, request_id="same"))
    with pytest.raises(TooLongError, match="the context is 2048 tokens"):
        loop.submit(make_request(10, 5000))
    loop.cancel("same")
    inbox.wait_for(request)
    again = make_request(5, 2, request_id="same", arrival_s=time.monotonic())
    inbox.events.clear()
    loop.submit(again)
    inbox.wait_for(again)


def test_a_full_queue_says_when_to_come_back(shared_programs: pathlib.Path) -> None:
    loop = build_toy_loop(shared_programs, max_queued_requests=3)
    inbox = start(loop, Health.WARM)
    accepted = []
    with pytest.raises(QueueFullError, match=r"^3 .*max_queued_requests=3") as caught:
        for _ in range(100):
            request = make_request(600, 100, arrival_s=time.monotonic())
            loop.submit(request)
            accepted.append(request)
    assert caught.value.retry_after_s > 0
    assert not loop.drain(0.05), "there was too much to finish"
    inbox.wait_for(*accepted)
    ends = [inbox.events[one.request_id][-1] for one in accepted]
    cancelled = [one for one in ends if one.finish_reason is FinishReason.CANCELLED]
    assert cancelled and all(one.is_cut for one in cancelled)
    with pytest.raises(NotServingError, match="draining"):
        loop.submit(make_request())
    loop.stop()


def test_drain_lets_running_requests_finish(shared_programs: pathlib.Path) -> None:
    loop = build_toy_loop(shared_programs, enable_overlap=False)
    inbox = start(loop, Health.READY)
    requests = [make_request(100, 30, arrival_s=0.1 * i) for i in range(4)]
    for request in requests:
        loop.submit(request)
    assert loop.drain(60.0)
    for request in requests:
        assert inbox.tokens(request) == toy_output(request)
    loop.stop()


@pytest.mark.parametrize(
    ("num_processes", "error", "words"),
    [
        (1, RuntimeError("the device is gone"), "failed: the device is gone"),
        (2, JaxRuntimeError("Gloo: [10.0.0.2]:1"), "a process that shares the model"),
    ],
)
def test_a_dead_engine_ends_every_request_and_refuses_new_ones(
    shared_programs: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    num_processes: int,
    error: Exception,
    words: str,
) -> None:
    loop = build_toy_loop(shared_programs)
    inbox = start(loop, Health.WARM)

    def break_down(plan: object, **_: object) -> None:
        raise error

    monkeypatch.setattr(jax, "process_count", lambda: num_processes)
    monkeypatch.setattr(loop._engine, "launch", break_down)
    request = make_request(arrival_s=time.monotonic())
    loop.submit(request)
    inbox.wait_for(request)
    last = inbox.events[request.request_id][-1]
    assert last.error is not None and words in last.error
    assert loop.health is Health.FAILED
    with pytest.raises(NotServingError, match="failed"):
        loop.submit(make_request())
    assert not loop.wait_until(Health.READY, 5.0)
    loop.stop()


@pytest.mark.parametrize("where", ["plan", "launch", "wait"])
def test_a_step_that_hangs_is_noticed(
    shared_programs: pathlib.Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    loop = build_toy_loop(shared_programs, step_timeout_s=0.2)
    inbox = start(loop, Health.WARM)
    launch, comes_back = loop._engine.launch, threading.Event()

    def hang(*args: Any, **kwargs: Any) -> Any:
        comes_back.wait()
        raise AssertionError("it came back")

    def launch_what_hangs(*args: Any, **kwargs: Any) -> Any:
        pending = launch(*args, **kwargs)
        monkeypatch.setattr(type(pending), "wait", hang)
        return pending

    loop.check_progress()
    assert loop.health is Health.WARM, "nothing runs"
    owner = type(loop._scheduler.policy) if where == "plan" else loop._engine
    name = "launch" if where == "wait" else where
    monkeypatch.setattr(owner, name, launch_what_hangs if where == "wait" else hang)
    request = make_request(arrival_s=time.monotonic())
    loop.submit(request)
    if where == "plan":
        time.sleep(0.1)
        with pytest.raises(NotServingError, match="a plan takes longer than 1 s"):
            loop.submit(make_request(arrival_s=time.monotonic()))
    while not inbox.events[request.request_id]:
        loop.check_progress()
        time.sleep(0.05)
    last = inbox.events[request.request_id][-1]
    assert last.error is not None and "ended no step in 0." in last.error
    comes_back.set()
    loop.stop()


def test_what_hangs_as_the_server_stops_is_an_error(
    shared_programs: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = build_toy_loop(shared_programs, step_timeout_s=0.0)
    inbox = start(loop, Health.WARM)
    comes_back = threading.Event()
    monkeypatch.setattr(loop._engine, "launch", lambda *_, **__: comes_back.wait())
    monkeypatch.setattr("jserve.engine.loop._CANCEL_TIMEOUT_S", 0.1)
    request = make_request(arrival_s=time.monotonic())
    loop.submit(request)
    assert not loop.drain(0.1)
    last = inbox.events[request.request_id][-1]
    assert last.error is not None and "ended no step in 0.1 s" in last.error
    assert loop.health is Health.FAILED
    comes_back.set()
    loop.stop()


def test_tokens_that_could_not_be_delivered_are_delivered_once_more(
    shared_programs: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    loop = build_toy_loop(shared_programs)
    inbox = start(loop, Health.WARM)
    faults = iter([None, RuntimeError("no room"), None, MemoryError()])

    def listen(events: Any) -> None:
        if (fault := next(faults, None)) is not None:
            raise fault
        inbox(events)

    loop.set_listener(listen)
    request = make_request(20, 30, arrival_s=time.monotonic())
    loop.submit(request)
    inbox.wait_for(request)
    assert inbox.tokens(request) == toy_output(request)
    assert caplog.text.count("are delivered once more") == 2
    loop.stop()


def test_a_fault_in_bookkeeping_ends_no_request(
    shared_programs: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop = build_toy_loop(shared_programs)
    inbox = start(loop, Health.WARM)
    prices = loop._records._prices
    monkeypatch.setattr(loop._records, "_prices", None)
    request = make_request(20, 80, arrival_s=time.monotonic())
    loop.submit(request)
    inbox.wait_for(request)
    assert inbox.tokens(request) == toy_output(request)
    assert loop._records.num_lost > 32
    assert caplog.text.count("have no record") == 1
    monkeypatch.setattr(loop._records, "_prices", prices)
    loop.stop()


def adjusted_output(request: Request) -> list[int]:
    """What the toy answers with a request's biases and frequency penalty, greedily."""
    how, tokens, answers = request.sampling, request.prompt_tokens.tolist(), list[int]()
    for _ in range(request.max_tokens):
        logits = np.zeros(TOY.vocab_size)
        logits[toy_next_token(tokens)] = MARGIN
        for token, bias in how.biases:
            logits[token] += bias
        for token in set(answers):
            logits[token] -= how.frequency_penalty * answers.count(token)
            logits[token] -= how.presence_penalty
        for word in how.bad_words:
            if tuple(answers[len(answers) - len(word) + 1 :]) == word[:-1]:
                logits[word[-1]] = -np.inf
        answers.append(int(np.argmax(logits)))
        tokens.append(answers[-1])
    return answers


def test_logits_are_adjusted_by_what_came_before(
    loop: EngineLoop, inbox: Inbox
) -> None:
    rng = np.random.default_rng(0)
    settle(loop)
    hows: list[dict[str, Any]] = [
        {"biases": ((5, 40.0),), "frequency_penalty": 2.0},
        {"biases": ((5, 31.0), (6, 30.5)), "presence_penalty": 1.5},
        {"biases": ((7, 50.0), (9, 45.0)), "bad_words": ((7, 7, 7), (9, 7))},
        {"biases": ((200, 1.0),), "only_biased": True},
        {},
    ]
    # Twice as many as there are slots, so that slots have had others before.
    requests = [
        make_request(
            int(rng.integers(1, 100)),
            12,
            arrival_s=time.monotonic(),
            sampling=SamplingParams(num_logprobs=index % 3 or None, **how),
        )
        for index, how in enumerate(hows * 7)
    ]
    for request in requests:
        loop.submit(request)
    inbox.wait_for(*requests, timeout_s=100.0)
    assert loop.stats().num_compiles_after_warmup == 0
    for request in requests:
        if request.sampling.only_biased:
            assert set(inbox.tokens(request)) == {200}
        else:
            assert inbox.tokens(request) == adjusted_output(request)
        # The model itself gives its answer nearly all, whatever is drawn.
        count = request.sampling.num_logprobs
        tokens = request.prompt_tokens.tolist()
        for event in inbox.events[request.request_id]:
            if count is None:
                assert event.logprobs is None
                continue
            found, answer = event.logprobs, toy_next_token(tokens)
            assert found is not None and event.token is not None
            assert found.top_tokens[0] == answer and len(found.top) == count
            assert found.top[0] == pytest.approx(0.0, abs=1e-6)
            drawn = 0.0 if event.token == answer else -MARGIN
            assert found.drawn == pytest.approx(drawn, abs=1e-4)
            assert (found.rank == 1) == (event.token == answer)
            tokens.append(event.token)
