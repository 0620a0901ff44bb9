"""The official client, against a scripted engine."""

import openai
import pytest

from fake_server import FakeLoop, serve_fake
from jserve.config import EngineConfig


@pytest.fixture
def client(served):
    with openai.OpenAI(
        base_url=f"{served.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


def test_streaming_a_chat(client):
    stream = client.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "hello?"}],
        max_completion_tokens=11,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(one.choices[0].delta.content for one in chunks) == "hello hello"
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.usage.completion_tokens == 11
    assert last.usage.prompt_tokens_details.cached_tokens == 2


def test_streaming_a_completion(client):
    stream = client.completions.create(
        model="fake",
        prompt="hi",
        max_tokens=12,
        stop=["llo h"],
        stream=True,
        extra_body={"ignore_eos": True, "slo": {"ttft_ms": 1000, "tpot_ms": 50}},
    )
    chunks = list(stream)
    assert "".join(one.choices[0].text for one in chunks) == "he"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_n_choices_and_models(client):
    answer = client.chat.completions.create(
        model="fake",
        messages=[{"role": "user", "content": "hi"}],
        max_tokens=5,
        n=2,
    )
    assert [one.message.content for one in answer.choices] == ["hello", "hello"]
    assert answer._request_id == answer.id
    assert [one.id for one in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").id == "fake"


def test_errors_become_the_clients_own(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="other", prompt="hi")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="fake", prompt="hi", max_tokens=10**6)
    assert caught.value.param == "max_tokens"


def test_the_client_comes_back_after_429():
    config = EngineConfig(max_queued_requests=1)
    with serve_fake(FakeLoop(config=config)) as served:
        served.loop.running.clear()
        with (
            served.send(),
            openai.OpenAI(
                base_url=f"{served.url}/v1", api_key="none", max_retries=0
            ) as client,
        ):
            assert served.loop.wait_live(1)
            with pytest.raises(openai.RateLimitError) as caught:
                client.completions.create(model="fake", prompt="hi")
            assert caught.value.response.headers["retry-after"] == "3"
            served.loop.running.set()
            assert served.loop.wait_idle()
            answer = client.completions.create(model="fake", prompt="hi")
            assert answer.choices[0].finish_reason == "length"
