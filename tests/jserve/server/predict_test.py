"""Forecasts over HTTP: the header, POST /jserve/predict, and their metrics."""

import json

import pytest

from jserve.records.events import Health
from tests.fake_loop import FakeLoop
from tests.fake_server import Served, serve_fake

HEADER = (
    "ttft_s=(5.000 10.000), worst_gap_s=(0.250 0.500), ttlt_s=(6.000 12.500), "
    "chance=0.500"
)


@pytest.fixture(scope="module")
def served():
    with serve_fake() as served:
        yield served


def predict(served: Served, body: object):
    return served.request("POST", "/jserve/predict", json.dumps(body).encode())


def test_an_answer_says_what_was_expected_of_it(served):
    assert served.complete(max_tokens=2).headers["x-jserve-forecast"] == HEADER
    chat = served.chat(max_tokens=2, stream=True)
    assert chat.headers["x-jserve-forecast"] == HEADER
    text = served.get("/metrics").body.decode()
    label = 'at_most="p50",model_name="fake",service_class="best_effort"'
    assert f"jserve:ttft_forecasts_total{{{label}}} 2.0" in text
    assert "jserve:ttft_forecast_error_ratio_bucket" in text


@pytest.mark.parametrize(
    "body",
    [
        {"prompt_tokens": 9, "output_tokens": 4, "slo": {"ttft_ms": 500}},
        {"prompt_tokens": 9, "max_tokens": 4, "class": "best_effort"},
        {"prompt_tokens": 9, "max_tokens": 4, "prefix_hashes": ["0f" * 16]},
        {"prompt": "hi", "max_tokens": 4},
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
        {"messages": [{"role": "user", "content": "hi" * 9000}], "max_tokens": 1},
    ],
)
def test_a_request_or_its_lengths_are_predicted(served, body):
    num_seen = len(served.loop.seen)
    answer = predict(served, body)
    if len(str(body)) > 512:  # too long for the model, as the request itself would be
        assert answer.status == 400
        return
    assert answer.json() == {
        "version": 1,
        "ttft_s": {"p50": 5.0, "p90": 10.0},
        "worst_gap_s": {"p50": 0.25, "p90": 0.5},
        "ttlt_s": {"p50": 6.0, "p90": 12.5},
        "chances": {"ttft_s": 0.75, "tbt_s": 0.5},
        "chance": 0.5,
        "attainable_in_s": 1.5,
    }
    assert len(served.loop.seen) == num_seen


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt_tokens": 9}, "max_tokens or output_tokens"),
        ({"prompt_tokens": 9000, "max_tokens": 4}, "the context is 512"),
        ({"prompt_tokens": 9, "max_tokens": 4, "ttft": 1}, "unknown field `ttft`"),
        ({"prompt_tokens": 9, "max_tokens": 4, "class": "x"}, "class='x'"),
        ([], "not a request or its lengths"),
    ],
)
def test_what_cannot_be_predicted_is_refused(served, body, message):
    answer = predict(served, body)
    assert answer.status == 400
    assert message in answer.error["message"]


def test_nothing_is_predicted_before_it_is_ready():
    with serve_fake(FakeLoop(health=Health.STARTING)) as served:
        body = {"prompt_tokens": 9, "max_tokens": 4}
        assert predict(served, body).status == 503
