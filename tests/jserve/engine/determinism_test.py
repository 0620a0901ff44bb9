"""The same request gives the same answer whatever runs beside it."""

import dataclasses

import numpy as np
import pytest

from jserve.engine.engine import Engine
from jserve_sched.requests.request import Request, SamplingParams
from tests.engine_harness import EngineDriver, Trace, make_engine, make_engine_scheduler

NUM_SEEDS = 4
MARGIN = 1e-3
LOGIT_TOLERANCE = 1e-4
PROMPT_TOKENS = 300  # two full pages and more: a prefix hit is 256 tokens
MAX_TOKENS = 12


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine("tiny", num_pages=100, captures_logits=True)


def subject(seed: int, *, is_greedy: bool) -> Request:
    rng = np.random.default_rng(seed)
    sampling = SamplingParams(seed=seed)
    if not is_greedy:
        sampling = SamplingParams(temperature=0.8, top_p=0.95, top_k=50, seed=seed)
    return Request(
        request_id="subject",
        arrival_s=1.0,
        prompt_tokens=rng.integers(0, 256, PROMPT_TOKENS),
        max_tokens=MAX_TOKENS,
        sampling=sampling,
    )


def neighbours(
    count: int, *, first_s: float, seed: int = 99, most_tokens: int = 700
) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [
        Request(
            request_id=f"n{index}",
            arrival_s=first_s + index * 1e-3,
            prompt_tokens=rng.integers(0, 256, int(rng.integers(1, most_tokens))),
            max_tokens=int(rng.integers(2, 40)),
            sampling=SamplingParams(temperature=float(index % 2), seed=index),
        )
        for index in range(count)
    ]


def run(engine: Engine, *requests: Request, **fields: object) -> Trace:
    driver = EngineDriver(
        engine,
        make_engine_scheduler(engine, **fields),
        captures=True,
    )
    driver.run(*requests, until=requests[0])
    return driver.traces["subject"]


def agreement(one: Trace, other: Trace, tokens: list[list[int]]) -> bool:
    """Checks logits and tokens up to the first close call; True if all are equal."""
    for step in range(MAX_TOKENS):
        difference = np.max(np.abs(one.logits[step] - other.logits[step]))
        assert difference < LOGIT_TOLERANCE
        if tokens[0][step] != tokens[1][step]:
            best = np.sort(one.scores[step])[-2:]
            assert best[1] - best[0] < MARGIN, "a clear decision came out differently"
            return False
    return True


@pytest.mark.parametrize("is_greedy", [True, False], ids=["greedy", "sampled"])
def test_across_buckets_answers_agree(engine: Engine, is_greedy: bool) -> None:
    num_equal = dict.fromkeys(("crowd", "chunked", "prefix"), 0)
    for seed in range(NUM_SEEDS):
        alone_request = subject(seed, is_greedy=is_greedy)
        alone = run(engine, alone_request)
        for name in num_equal:
            request = subject(seed, is_greedy=is_greedy)
            if name == "crowd":
                # Prompts of a step or two: the first still decode when the last come.
                crowd = neighbours(15, first_s=0.99, seed=seed, most_tokens=200)
                trace = run(engine, request, *crowd)
            elif name == "chunked":
                # Neighbours that arrived first leave it odd numbers of blocks.
                crowd = neighbours(3, first_s=0.0, seed=seed)
                trace = run(engine, request, *crowd)
            else:
                first = dataclasses.replace(
                    subject(seed, is_greedy=is_greedy), request_id="before"
                )
                driver = EngineDriver(
                    engine,
                    make_engine_scheduler(engine, enable_prefix_caching=True),
                    captures=True,
                )
                driver.run(first)
                driver.run(request)
                assert request.num_cached_tokens == 256
                trace = driver.traces["subject"]
            tokens = [alone_request.output_tokens, request.output_tokens]
            num_equal[name] += agreement(alone, trace, tokens)
    # A difference in the last bits seldom decides a draw.
    assert min(num_equal.values()) >= NUM_SEEDS - 1


def test_within_one_bucket_and_row_logits_are_bit_identical(engine: Engine) -> None:
    # Neighbours differ in content and length, and come and go, so the subject's path
    # through buckets and rows differs too: compare where its whole past is the same.
    seen: dict[object, tuple[np.ndarray, int]] = {}
    num_compared = 0
    for run_index in range(8):
        request = dataclasses.replace(subject(3, is_greedy=True), arrival_s=0.0)
        count = run_index % 4
        crowd = neighbours(count, first_s=1.0, seed=run_index)
        trace = run(engine, request, *crowd)
        for past, logits in zip(trace.pasts, trace.logits, strict=True):
            if past in seen and seen[past][1] != run_index:
                num_compared += 1
                assert np.array_equal(seen[past][0], logits)
            seen.setdefault(past, (logits, run_index))
    assert num_compared >= 2 * MAX_TOKENS
