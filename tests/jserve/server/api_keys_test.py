"""API keys: files of them, and their limits."""

import contextlib
import json
import threading

import pytest

from jserve.server.api_keys import load_api_keys
from jserve.server_config import ServerConfig
from tests.fake_server import serve_fake


def test_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_bytes(b"\xef\xbb\xbffirst\r\n\r\nsecond\r\n")
    with serve_fake(api_key_file=path) as served:
        for given in ("", "Bearer third", "Basic first", "Bearer "):
            answer = served.complete(headers={"Authorization": given})
            assert answer.status == 401
            assert answer.error["code"] == "invalid_api_key"
            wrong = answer.error["message"] == "the API key is not one of this server's"
            assert wrong == (given == "Bearer third")
        assert served.get("/jserve/info").status == 401
        assert served.request("HEAD", "/health").status == 200
        for one in ("first", "second"):
            key = {"Authorization": f"Bearer {one}"}
            assert served.complete(headers=key, max_tokens=1).status == 200
        assert "first" not in served.get("/jserve/info", headers=key).body.decode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"name": "ann", "key": "1", "max_running": 3}]', "max_running"),
        ('{"alice": "1"}', "an object, not"),
        ('[{"name": "ann", "key": "1"}, {"name": "bob", "key": "1"}]', "the same key"),
    ],
)
def test_invalid_keys(tmp_path, text, words):
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"api_key_file=.*{words}"):
        load_api_keys(ServerConfig(api_key_file=path))


def test_limits_of_keys(tmp_path):
    path = tmp_path / "keys.json"
    keys = [
        {"name": "ann", "key": "1", "max_parallel_requests": 3},
        {"name": "bob", "key": "2", "max_waiting_requests": 2},
        {"name": "eve", "key": "3", "tokens_per_minute": 600},
        {"name": "zoe", "key": "4"},
    ]
    path.write_text(json.dumps(keys))

    def ask(key, **fields):
        headers = {"Authorization": f"Bearer {key}"}
        return served.complete(headers=headers, max_tokens=2, **fields)

    with serve_fake(api_key_file=path) as served, contextlib.ExitStack() as stack:
        # Used at once, and more of the minute's tokens than there are.
        assert ask(3, prompt=["a" * 400] * 2).status == 200
        refused = ask(3)
        assert "api key 'eve' has tokens_per_minute=600: 80" in refused.error["message"]
        assert 15 <= int(refused.headers["retry-after"]) <= 21
        # At once, and waiting: a request of two outputs counts twice.
        served.loop.running.clear()
        for key in (1, 2):
            thread = threading.Thread(target=ask, args=(key,), kwargs={"n": 2})
            thread.start()
            stack.callback(thread.join)
            assert served.loop.wait_live(2 * key)
        for key, limit in ((1, "max_parallel_requests=3"), (2, "max_waiting_requests")):
            refused = ask(key, n=2)
            assert (refused.status, refused.headers["retry-after"]) == (429, "1")
            assert refused.error["code"] == "rate_limit_exceeded"
            assert limit in refused.error["message"]
        served.loop.running.set()
        assert served.loop.wait_idle()
        for key in (1, 2, 4):
            assert ask(key, n=2).status == 200
        assert ask(2, n=3).status == 400, "it may never have so many"
        metrics = served.get("/metrics").body.decode()
        for labels in (
            'key_requests_total{api_key="ann",model_name="fake",'
            'outcome="max_parallel_requests"} 1.0',
            'key_tokens_total{api_key="eve",kind="prompt",model_name="fake"} 800.0',
            'key_tokens_total{api_key="zoe",kind="generation",model_name="fake"} 4.0',
        ):
            assert labels in metrics


# With "stuck": an engine that does not stop, in a thread that Python would wait for.
