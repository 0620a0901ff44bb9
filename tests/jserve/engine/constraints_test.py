"""Answers that have to be something, drawn beside answers that may be anything."""

import json
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import numpy as np
import pytest

from jserve.engine.loop import EngineLoop
from jserve.records.events import Health
from jserve.text.constraints import Constraint, Constraints, GivenTokens
from jserve.text.tokenizer import ByteTokenizer
from jserve_models.toy import TOY
from jserve_sched.requests.request import FinishReason, Request, SamplingParams
from tests.engine_harness import Inbox, build_toy_loop, start, toy_output
from tests.fakes import make_request
from tests.json_schemas import draw_schema

NUM_SCHEMAS = 40


@pytest.fixture(scope="module")
def loop(shared_programs: pathlib.Path) -> Iterator[EngineLoop]:
    loop = build_toy_loop(shared_programs)
    start(loop, Health.WARM)
    yield loop
    loop.stop()


@pytest.fixture(scope="module")
def constraints() -> Constraints:
    return Constraints(ByteTokenizer(), TOY.vocab_size)


def constrained(constraint: Constraint | None, temperature: float = 0.0) -> Request:
    return make_request(
        20,
        200,
        arrival_s=time.monotonic(),
        stop_token_ids=ByteTokenizer().eos_token_ids if constraint else frozenset(),
        sampling=SamplingParams(temperature=temperature, seed=3),
        constraint=constraint,
    )


def answers(loop: EngineLoop, requests: list[Request]) -> list[tuple[str, bool]]:
    """Returns each answer's text, and whether it came to its end."""
    inbox = Inbox()
    loop.set_listener(inbox)
    for request in requests:
        loop.submit(request)
    inbox.wait_for(*requests, timeout_s=100.0)
    found = []
    for request in requests:
        events = inbox.events[request.request_id]
        assert events[-1].error is None
        is_whole = events[-1].finish_reason is FinishReason.STOP
        tokens = [one.token for one in events if one.token is not None]
        found.append((ByteTokenizer().decode(tokens), is_whole))
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_what_they_have_to_be(
    loop: EngineLoop, constraints: Constraints, temperature: float
) -> None:
    date = constraints.make("regex", r"[0-9]{4}-[0-9]{2}")
    colour = constraints.make("choice", ["red", 'gr"een'])
    words = constraints.make("grammar", 'start: "a"+ "b"? \n')
    asked = [one.copy() for one in (date, colour) for _ in range(6)]
    requests = [constrained(one, temperature) for one in asked]
    plain = [constrained(None) for _ in requests]
    crowd = [one for pair in zip(requests, plain, strict=True) for one in pair]
    found = answers(loop, [*crowd, constrained(words, temperature)])
    for text, is_whole in found[:12:2]:
        assert is_whole and re.fullmatch(r"[0-9]{4}-[0-9]{2}", text)
    for text, is_whole in found[12:24:2]:
        assert is_whole and text in ("red", 'gr"een')
    assert re.fullmatch("a+b?", found[-1][0])
    # Those beside them have the tokens that they have alone.
    for request, (text, _) in zip(plain, found[1::2], strict=False):
        assert text == ByteTokenizer().decode(toy_output(request))
    assert loop.stats().num_compiles_after_warmup == 0


def test_json_follows_its_schema_or_is_cut(
    loop: EngineLoop, constraints: Constraints
) -> None:
    schemas = [draw_schema(seed) for seed in range(NUM_SCHEMAS)]
    made = [constraints.make("json", one) for one in schemas]
    requests = [constrained(one.copy(), temperature=1.0) for one in made]
    found = answers(loop, requests)
    for schema, constraint, (text, is_whole) in zip(schemas, made, found, strict=True):
        if is_whole:
            checker = jsonschema.Draft202012Validator(
                schema, format_checker=jsonschema.FormatChecker()
            )
            checker.validate(json.loads(text))
        else:
            tokens = ByteTokenizer().encode(text)
            assert constraint.matcher.validate_tokens(tokens) == len(tokens)
    assert sum(is_whole for _, is_whole in found) > NUM_SCHEMAS / 2


def test_a_constraint_that_fails_ends_its_request_alone(
    loop: EngineLoop, constraints: Constraints, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, other = (constraints.make("regex", "[ab]{40}") for _ in range(2))
    accept = Constraint.accept

    def fail_late(self: Constraint, token: int) -> None:
        accept(self, ord("z") if self is failing else token)

    monkeypatch.setattr(Constraint, "accept", fail_late)
    inbox = Inbox()
    loop.set_listener(inbox)
    requests = [constrained(failing), constrained(other)]
    for request in requests:
        loop.submit(request)
    inbox.wait_for(*requests)
    last, whole = (inbox.events[one.request_id][-1] for one in requests)
    assert last.error is not None and "cannot be followed" in last.error
    assert (whole.error, whole.finish_reason) == (None, FinishReason.STOP)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("json", {"type": "objekt"}, "Invalid type: objekt"),
        ("json", {"$ref": "#/x"}, "does not exist"),
        ("json", "{", "EOF while parsing"),
        ("json", "[" * 10_000, "recursion limit"),
        ("regex", "(", "unclosed group"),
        ("grammar", "start: x", "unknown name"),
    ],
)
def test_a_constraint_that_cannot_be_made_says_why(
    constraints: Constraints, kind: str, value: object, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        constraints.make(kind, value)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_given_tokens_come_first_with_what_the_model_gave_them(
    loop: EngineLoop, constraints: Constraints
) -> None:
    end = min(ByteTokenizer().eos_token_ids)
    prompt = np.array([65, 66, end, 31, 0, 67], np.int32)
    sampling = SamplingParams(num_logprobs=3)
    colour = constraints.make("choice", ["red"])

    def ask(prompt: np.ndarray, max_tokens: int, **fields: Any) -> Request:
        return make_request(
            prompt=prompt, max_tokens=max_tokens, sampling=sampling, **fields
        )

    given = ask(
        *(prompt[:1], 8),
        min_tokens=5,
        stop_token_ids=frozenset([end]),
        constraint=GivenTokens(prompt[1:], colour),
    )
    parts = [ask(prompt[:size], 1) for size in range(1, len(prompt))]
    inbox = Inbox()
    loop.set_listener(inbox)
    for request in (given, *parts):
        loop.submit(request)
    inbox.wait_for(given, *parts)
    events = inbox.events[given.request_id]
    tokens = [one.token for one in events if one.token is not None]
    assert tokens == [*prompt[1:].tolist(), *b"red"]
    for part, event in zip(parts, events, strict=False):
        [alone] = inbox.events[part.request_id]
        assert event.logprobs is not None and alone.logprobs is not None
        assert event.logprobs.top_tokens == alone.logprobs.top_tokens
        np.testing.assert_allclose(event.logprobs.top, alone.logprobs.top, atol=1e-4)
        assert event.logprobs.drawn <= event.logprobs.top[0]
    assert loop.stats().num_compiles_after_warmup == 0
