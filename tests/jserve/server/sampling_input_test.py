"""Fields that change how tokens are drawn, and the log-probabilities they return."""

import math

import pytest

from jserve.records.events import TokenLogprobs
from jserve.text.tokenizer import BYTE_CONTROL_TOKENS
from tests.fake_loop import FakeLoop
from tests.fake_server import serve_fake

END = BYTE_CONTROL_TOKENS["<|end|>"]


def sampling(served, **fields):
    assert served.complete(max_tokens=1, **fields).status == 200
    return served.loop.seen[-1].sampling


def test_fields_reach_the_engine(served):
    found = sampling(
        served,
        **{"frequency_penalty": 0.5, "presence_penalty": -1, "repetition_penalty": 1.2},
        **{"logit_bias": {"104": 2.5}, "bad_words": ["no"], "logprobs": 3},
    )
    assert (found.frequency_penalty, found.presence_penalty) == (0.5, -1.0)
    assert (found.repetition_penalty, found.num_logprobs) == (1.2, 3)
    assert found.biases == ((104, 2.5),) and not found.only_biased
    assert set(found.bad_words) == {tuple(b"no"), tuple(b" no")}
    found = sampling(served, allowed_token_ids=[5, 104], logit_bias={"104": 2, "9": 1})
    assert found.biases == ((5, 0.0), (104, 2.0)) and found.only_biased
    assert not sampling(served, presence_penalty=0, logit_bias={}).is_adjusted
    assert sampling(served).num_logprobs is None


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"frequency_penalty": 2.1}, "frequency_penalty", ["2.1", "-2..2"]),
        ({"repetition_penalty": 0}, "repetition_penalty", ["=0", "(0, 100]"]),
        ({"logit_bias": {"4": 101}}, "logit_bias", ["101", "'4'", "-100..100"]),
        ({"logit_bias": {"320": 1}}, "logit_bias", ["320", "0..319"]),
        ({"logit_bias": {"x": 1}}, "logit_bias", ["'x'", "token id"]),
        ({"allowed_token_ids": []}, "allowed_token_ids", [">= 1"]),
        ({"allowed_token_ids": [-1]}, "allowed_token_ids", ["-1", "0..319"]),
        ({"bad_words": ["a" * 9]}, "bad_words", ["9 tokens", "1..8"]),
        ({"bad_words": [str(i) for i in range(40)]}, "bad_words", ["80 words", "64"]),
        ({"logprobs": 21}, "logprobs", ["21", "<= 20"]),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", ["stream"]),
        ({"prompt_logprobs": 1, "logprobs": 2}, "prompt_logprobs", ["differ"]),
        (
            {"logprobs": 1, "echo": True, "presence_penalty": 1},
            *("logprobs", ["presence_penalty"]),
        ),
    ],
)
def test_a_value_out_of_its_limits(served, fields, param, words):
    answer = served.complete(**fields)
    assert (answer.status, answer.error["param"]) == (400, param), answer.error
    for word in words:
        assert word in answer.error["message"]


def test_a_chat_asks_for_likeliest_tokens_only_with_logprobs(served):
    assert served.chat(top_logprobs=2).error["param"] == "top_logprobs"
    assert served.chat(logprobs=2).error["param"] == "logprobs"


@pytest.fixture(scope="module")
def told():
    """A server whose first token is the first byte of a character of two."""

    def logprobs(token):
        return TokenLogprobs(-0.5, 1, [token, 33], [-0.5, -math.inf])

    loop = FakeLoop(lambda request: [0xC3, 0xA9, 104], logprobs=logprobs)
    with serve_fake(loop) as served:
        yield served


def test_logprobs_of_a_completion(told):
    answer = told.complete(max_tokens=3, logprobs=2).json()
    assert answer["choices"][0]["logprobs"] == {
        "text_offset": [0, 1, 2],
        "token_logprobs": [-0.5] * 3,
        "tokens": ["\ufffd", "\ufffd", "h"],
        "top_logprobs": [
            {"\ufffd": -0.5, "!": -9999.0},
            {"\ufffd": -0.5, "!": -9999.0},
            {"h": -0.5, "!": -9999.0},
        ],
    }
    chunks = told.complete(max_tokens=3, logprobs=2, stream=True).chunks()
    parts = [one["choices"][0]["logprobs"] for one in chunks]
    assert [one["text_offset"] for one in parts] == [[0], [1], [2]]
    assert parts[2]["tokens"] == ["h"]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_a_chat(told, stream):
    answer = told.chat(max_tokens=3, logprobs=True, top_logprobs=2, stream=stream)
    if stream:
        chunks = answer.chunks()
        assert "".join(one["choices"][0]["delta"]["content"] for one in chunks) == "éh"
        content = [
            entry
            for one in chunks
            for entry in one["choices"][0]["logprobs"]["content"]
        ]
    else:
        content = answer.json()["choices"][0]["logprobs"]["content"]
    assert [one["bytes"] for one in content] == [[0xC3], [0xA9], [104]]
    first = {"token": "h", "logprob": -0.5, "bytes": [104]}
    second = {"token": "!", "logprob": -9999.0, "bytes": [33]}
    assert content[2] == first | {"top_logprobs": [first, second]}


def test_special_tokens_may_be_shown_and_stop_strings_may_have_them():
    with serve_fake(FakeLoop(lambda request: [104, 258, 105, END])) as served:
        answer = served.complete(max_tokens=3).json()
        assert answer["choices"][0]["text"] == "hi"
        answer = served.complete(max_tokens=3, skip_special_tokens=False).json()
        assert answer["choices"][0]["text"] == "h<|system|>i"
        for stop in ("<|system|>", "h<|system|>i", "<|system|>i"):
            answer = served.complete(max_tokens=40, stop=stop).json()
            assert answer["choices"][0]["text"] == "h"[: not stop.startswith("h")]
            assert answer["choices"][0]["finish_reason"] == "stop"
        answer = served.complete(max_tokens=3, stop="i<|system|>").json()
        assert answer["choices"][0]["text"] == "hi"


def test_a_prompt_keeps_its_last_tokens_if_it_may_be_cut(served):
    long = "abc" * 1000
    assert served.complete(prompt=long).status == 400
    assert served.complete(prompt=long, truncate_prompt_tokens=2).status == 200
    assert served.loop.seen[-1].prompt_tokens.tolist() == list(b"bc")
    answer = served.complete(prompt=long, truncate_prompt_tokens=-1, max_tokens=1)
    assert answer.json()["usage"]["total_tokens"] == served.loop.limits.context_tokens


@pytest.fixture(scope="module")
def scoring():
    """A server that draws the bytes of "bcd"; higher token ids are likelier."""

    def logprobs(token):
        return TokenLogprobs(-1.0 / token, 2, [33], [-0.5])

    with serve_fake(FakeLoop("bcd", logprobs=logprobs)) as served:
        yield served


def test_echo_with_logprobs_has_those_of_the_prompt(scoring):
    fields = {"prompt": "abc", "logprobs": 1, "max_tokens": 1}
    answer = scoring.complete(**fields, echo=True, slo={"ttft_ms": 1}).json()
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("abcd", "length")
    drawn = [None, -1 / 98, -1 / 99, -1 / 100]
    assert choice["logprobs"] == {
        "text_offset": [0, 1, 2, 3],
        "token_logprobs": drawn,
        "tokens": [*"abcd"],
        "top_logprobs": [
            one and {"!": -0.5, text: one}
            for text, one in zip("abcd", drawn, strict=True)
        ],
    }
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (3, 1)
    # The rest of the prompt is drawn as the first outputs, without an SLO.
    request = scoring.loop.seen[-1]
    assert request.prompt_tokens.tolist() == [97] and request.slo.is_best_effort
    assert (request.min_tokens, request.max_tokens) == (2, 3)
    [choice] = scoring.complete(prompt="a", logprobs=1, echo=True).json()["choices"]
    assert choice["logprobs"]["token_logprobs"][:2] == [None, -1 / 98]


def test_prompt_logprobs_have_the_form_of_vllm(scoring):
    fields = {"prompt_logprobs": 1, "max_tokens": 1}
    [choice] = scoring.complete(prompt="abc", **fields).json()["choices"]
    assert (choice["text"], choice["logprobs"]) == ("d", None)
    best = {"logprob": -0.5, "rank": 1, "decoded_token": "!"}
    assert choice["prompt_logprobs"] == [
        None,
        {
            "33": best,
            "98": {"logprob": -1 / 98, "rank": 2, "decoded_token": "b"},
        },
        {
            "33": best,
            "99": {"logprob": -1 / 99, "rank": 2, "decoded_token": "c"},
        },
    ]
    answer = scoring.chat(**fields).json()
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    assert len(answer["choices"][0]["message"]["content"]) == 1
