"""What is read in other processes, and what becomes of work that would never end."""

import gzip
import json
import shutil
import sys
import zlib

import pytest

from jserve.server.bodies import SMALL_BODY_BYTES
from jserve.server.chat_request import ChatRequest
from jserve.server.errors import ApiError
from jserve.server.prompts import BodyReader
from jserve.server.protocol import CompletionRequest
from jserve.text.tokenizer import ByteTokenizer, load_tokenizer
from jserve_sched.requests.limits import RequestLimits
from tests import ROOT
from tests.fake_loop import FakeLoop
from tests.fake_server import serve_fake

TEMPLATE = """
{%- macro deep(n) %}{{ deep(n + 1) }}{% endmacro -%}
{%- set word = messages[0].content -%}
{%- if word == 'hang' %}
{%- for i in range(10**5) %}{% for j in range(10**5) %}{% endfor %}{% endfor %}
{%- elif word == 'divide' %}{{ 1 // 0 }}
{%- elif word == 'range' %}{% for i in range(10**9) %}{% endfor %}
{%- elif word == 'deep' %}{{ deep(0) }}
{%- elif word == 'memory' %}{{ 'a' * 10**10 }}
{%- elif word == 'look up' %}{{ messages[5].content.more }}
{%- else %}<|user|>{{ word }}{% endif %}"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "folder"
    shutil.copytree(ROOT / "jserve/text/byte_tokenizer", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jserve.server.workers._NUM_WORKERS", 1)
        with serve_fake(tokenizer=load_tokenizer(folder)) as served:
            yield served


def say(served, text):
    return served.chat(messages=[{"role": "user", "content": text}], max_tokens=1)


@pytest.mark.parametrize(
    "word", ["hang", "divide", "range", "deep", "memory", "look up"]
)
def test_a_template_that_fails_is_a_400_that_says_so(served, word):
    answer = say(served, word)
    assert answer.status == 400
    assert answer.error["param"] == "messages"
    assert "the chat template" in answer.error["message"]
    assert say(served, "hi").status == 200  # by another worker, if one had to end


def test_nothing_large_is_read_on_the_event_loop(served, monkeypatch):
    sizes = []
    read = BodyReader.read

    def noted(reader, tokenizer, model, data, encoding=""):
        sizes.append(len(data))
        return read(reader, tokenizer, model, data, encoding)

    monkeypatch.setattr(BodyReader, "read", noted)
    for padding in (0, SMALL_BODY_BYTES):
        body = json.dumps({"prompt": [1, 2], "max_tokens": 1}).encode()
        body = body[:-1] + b" " * padding + b"}"
        for encoding, data in (
            ("", body),
            ("gzip", gzip.compress(body[:9]) + gzip.compress(body[9:])),
            ("deflate", zlib.compress(body)),
        ):
            headers = {"Content-Encoding": encoding} if encoding else {}
            answer = served.request("POST", "/v1/completions", data, headers)
            assert answer.status == 200, answer
            assert served.loop.seen[-1].prompt_tokens.tolist() == [1, 2]
    assert len(sizes) == 1 and sizes[0] < 100
    assert served.complete(prompt="a" * 10**6).error["code"] == (
        "context_length_exceeded"
    )
    wrong = {"messages": [{"role": "user", "content": 7}] * 20_000}
    body = json.dumps(wrong).encode()
    answer = served.request("POST", "/v1/chat/completions", body)
    assert answer.error["param"] == "messages.0.content"
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("encoding", "data", "status", "words"),
    [
        ("gzip", gzip.compress(b" " * 2**21), 413, str(2**20)),
        ("gzip", gzip.compress(b'{"prompt": "a"}')[:-9], 400, "ends too early"),
        ("deflate", b"nonsense", 400, "is not deflate"),
        ("zstd", b"", 415, "gzip, x-gzip, deflate"),
    ],
    ids=["large", "cut", "nonsense", "unknown"],
)
def test_a_compressed_body_that_is_refused(served, encoding, data, status, words):
    headers = {"Content-Encoding": encoding}
    answer = served.request("POST", "/v1/completions", data, headers)
    assert answer.status == status
    assert words in answer.error["message"]
    assert ("accept-encoding" in answer.headers) == (status == 415)


def test_a_text_that_is_too_long_is_refused_without_encoding_all_of_it():
    class Counting(ByteTokenizer):
        longest_token_chars = 128
        num_chars = 0

        def encode(self, text):
            self.num_chars += len(text)
            return super().encode(text)

    limits = RequestLimits(max_model_len=2**14, num_kv_tokens=2**14)
    reader = BodyReader(
        model_names=("fake",),
        vocab_size=320,
        limits=limits,
        max_requests=1,
        max_body_bytes=2**24,
    )
    for num_chars, most_chars in ((2**22, 0), (2**20, 2**16)):
        tokenizer = Counting()
        body = json.dumps({"prompt": "a" * num_chars}).encode()
        with pytest.raises(ApiError, match=f"prompt has {num_chars} characters"):
            reader.read(tokenizer, CompletionRequest, body)
        assert tokenizer.num_chars <= most_chars
    turns = [{"role": "user", "content": ""}] * (2**14 + 1)
    with pytest.raises(ApiError, match="which are 16385 tokens or more"):
        reader.read(tokenizer, ChatRequest, json.dumps({"messages": turns}).encode())


def test_a_template_is_tried_at_the_start(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("jserve.server.workers._NUM_WORKERS", 1)
    folder = tmp_path / "folder"
    shutil.copytree(ROOT / "jserve/text/byte_tokenizer", folder)
    (folder / "chat_template.jinja").write_text("{{ messages[1].content }}")
    with serve_fake(FakeLoop(), tokenizer=load_tokenizer(folder)) as other:
        assert say(other, "hi").status == 400
    assert "a trial of the chat template failed" in caplog.text


def test_a_worker_that_cannot_start_is_the_servers_fault(monkeypatch, caplog):
    with serve_fake() as other:
        monkeypatch.setattr(sys, "executable", "/usr/bin/false")
        answer = other.complete(prompt="a" * SMALL_BODY_BYTES)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "cannot start the process" in answer.error["message"]
        assert "EndOfStream" in caplog.text  # the cause
        monkeypatch.undo()
        answer = other.complete(prompt="a" * SMALL_BODY_BYTES)
        assert answer.error["code"] == "context_length_exceeded"
