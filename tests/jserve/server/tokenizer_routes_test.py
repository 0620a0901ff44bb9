import json

import pytest

from jserve.text.tokenizer import BYTE_CONTROL_TOKENS, ByteTokenizer


def post(served, path, **fields):
    return served.request("POST", path, json.dumps(fields).encode())


def test_text_becomes_tokens_and_text_again(served):
    answer = post(served, "/tokenize", prompt="hé").json()
    limit = served.loop.limits.context_tokens
    assert answer == {"count": 3, "max_model_len": limit, "tokens": [104, 195, 169]}
    tokens = [104, BYTE_CONTROL_TOKENS["<|end|>"], 195, 169]
    assert post(served, "/detokenize", tokens=tokens).json() == {"prompt": "hé"}
    turns = [{"role": "user", "content": "hi"}]
    wanted = ByteTokenizer().apply_chat_template(turns, add_generation_prompt=True)
    assert post(served, "/tokenize", messages=turns).json()["tokens"] == wanted
    large = post(served, "/tokenize", prompt="a" * 20_000)
    assert large.error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("path", "fields", "word"),
    [
        ("/tokenize", {}, "prompt is missing"),
        ("/tokenize", {"prompt": ["a", "b"]}, "2 texts"),
        ("/detokenize", {"tokens": "a"}, "array"),
        ("/detokenize", {"tokens": [320]}, "0..319"),
        ("/detokenize", {"tokens": [-1]}, ">= 0"),
    ],
)
def test_what_cannot_be_tokenized_is_refused(served, path, fields, word):
    answer = post(served, path, **fields)
    assert answer.status == 400 and word in answer.error["message"]


def test_a_ping_is_answered_as_health(served):
    assert served.request("POST", "/ping", b"").status == 200
    assert served.get("/ping").json()["warm"]
