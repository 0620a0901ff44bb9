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
