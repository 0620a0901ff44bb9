"""What comes out of /v1/completions and /v1/chat/completions."""

import pytest

from jserve.server.app import build_app
from jserve.server_config import ServerConfig
from jserve.text.tokenizer import BYTE_CONTROL_TOKENS, ByteTokenizer, load_tokenizer
from tests.fake_loop import FakeLoop
from tests.fake_server import read_until, serve_fake

EOS = BYTE_CONTROL_TOKENS["<|eos|>"]


def texts(chunks):
    return [one["choices"][0]["text"] for one in chunks]


def test_a_whole_completion(served):
    answer = served.complete(max_tokens=8).json()
    assert answer["object"] == "text_completion"
    assert answer["model"] == "fake"
    assert answer["choices"] == [
        {"index": 0, "text": "hello he", "logprobs": None, "finish_reason": "length"}
    ]
    assert list(answer["usage"].values()) == [
        *(2, 8, 10, {"cached_tokens": 2}),
        {"reasoning_tokens": 0},
    ]


def test_max_tokens_defaults_to_16_and_for_a_chat_to_the_rest_of_the_context(served):
    assert served.complete().json()["usage"]["completion_tokens"] == 16
    usage = served.chat().json()["usage"]
    assert usage["total_tokens"] == served.loop.limits.max_model_len


def test_a_stream_has_an_event_for_each_token_and_usage_last_when_asked_for(served):
    answer = served.complete(max_tokens=5, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    chunks = answer.chunks()
    assert texts(chunks) == list("hello")
    reasons = [one["choices"][0]["finish_reason"] for one in chunks]
    assert reasons == [*[None] * 4, "length"]
    assert all("usage" not in one for one in chunks)
    options = {"include_usage": True}
    *chunks, last = served.complete(
        max_tokens=3, stream=True, stream_options=options
    ).chunks()
    assert [one["usage"] for one in chunks] == [None] * 3
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    options["continuous_usage_stats"] = True
    *chunks, last = served.complete(
        max_tokens=3, stream=True, stream_options=options
    ).chunks()
    assert [one["usage"]["completion_tokens"] for one in chunks] == [1, 2, 3]
    assert chunks[-1]["usage"].items() <= last["usage"].items()


def test_a_chat_names_its_role_once(served):
    chunks = served.chat(max_tokens=3, stream=True).chunks()
    deltas = [one["choices"][0]["delta"] for one in chunks]
    role = {"role": "assistant"}
    assert deltas == [{**role, "content": "h"}, {"content": "e"}, {"content": "l"}]
    assert chunks[0]["object"] == "chat.completion.chunk"
    answer = served.chat(max_completion_tokens=5, max_tokens=9).json()
    assert answer["object"] == "chat.completion"
    message = answer["choices"][0]["message"]
    assert message == {**role, "content": "hello", "refusal": None}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "text", "num_tokens"),
    [(["zz", "o h"], "hell", 7), ("hellx", "hello hello ", 12)],
)
def test_stop_strings_across_tokens(served, stop, text, num_tokens, stream):
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = served.complete(max_tokens=12, stop=stop, stream=stream, **options)
    if stream:
        *chunks, last = answer.chunks()
        assert len(chunks) == num_tokens
        assert "".join(texts(chunks)) == text
        choice = chunks[-1]["choices"][0]
        usage = last["usage"]
    else:
        choice = answer.json()["choices"][0]
        assert choice["text"] == text
        usage = answer.json()["usage"]
    assert choice["finish_reason"] == ("length" if stop == "hellx" else "stop")
    assert usage["completion_tokens"] == num_tokens
    assert served.loop.wait_idle()


def test_a_stop_string_may_be_kept_waits_for_min_tokens_and_ends_the_request(served):
    del served.loop.cancelled[:]
    answer = served.complete(max_tokens=400, stop="lo", include_stop_str_in_output=True)
    assert answer.json()["choices"][0]["text"] == "hello"
    answer = served.complete(max_tokens=400, stop="lo", min_tokens=6)
    assert answer.json()["choices"][0]["text"] == "hello hel"
    assert served.loop.wait_idle()
    assert len(served.loop.cancelled) == 2


def test_eos_ends_an_output_without_showing():
    def script(request):
        return [104, 105, EOS, 33]

    with serve_fake(FakeLoop(script)) as served:
        answer = served.complete(stream=True).chunks()
        assert texts(answer) == ["h", "i", ""]
        assert answer[-1]["choices"][0]["finish_reason"] == "stop"
        answer = served.complete(ignore_eos=True, max_tokens=5).json()
        assert answer["choices"][0]["text"] == "hi!h"
        assert answer["usage"]["completion_tokens"] == 5
        assert served.loop.seen[-1].stop_token_ids == frozenset()
        answer = served.complete(ignore_eos=True, stop_token_ids=[105]).json()
        assert answer["choices"][0]["text"] == "hi"
        answer = served.complete(min_tokens=3, max_tokens=5).json()
        assert answer["choices"][0]["text"] == "hi!h"


def test_a_request_stops_at_8_tokens_at_most_the_models_own_among_them(served):
    own = load_tokenizer(None).eos_token_ids
    assert len(own) == 2
    asked = [*range(200, 206)]
    assert served.complete(stop_token_ids=[*asked, *asked, *own]).status == 200
    assert served.loop.seen[-1].stop_token_ids == {*asked, *own}
    asked = [*range(200, 208)]
    assert served.complete(stop_token_ids=asked, ignore_eos=True).status == 200
    assert served.loop.seen[-1].stop_token_ids == {*asked}
    assert served.complete(stop_token_ids=asked).status == 400


def test_a_model_with_too_many_end_tokens_is_refused_at_once():
    tokenizer = ByteTokenizer()
    tokenizer.eos_token_ids = frozenset(range(9))
    loop = FakeLoop()
    with pytest.raises(ValueError, match="9 end-of-sequence tokens; the limit is 8"):
        build_app(loop, tokenizer, ServerConfig())


class FragileTokenizer(ByteTokenizer):
    """Breaks at the letter x."""

    def detokenizer(self, prompt_tokens, *, skips_special=True):
        whole = super().detokenizer(prompt_tokens)

        class Fragile:
            finish = whole.finish

            def step(self, token):
                if token == ord("x"):
                    raise RuntimeError("this decoder broke")
                return whole.step(token)

        return Fragile()


def test_an_output_that_cannot_be_shown_costs_no_other_its_tokens(caplog):
    def script(request):
        return b"abx" if len(request.prompt_tokens) == 1 else b"hello "

    with serve_fake(FakeLoop(script), tokenizer=FragileTokenizer()) as served:
        served.loop.running.clear()
        with (
            served.send(prompt="!", max_tokens=100) as broken,
            served.send(max_tokens=20) as sound,
        ):
            assert served.loop.wait_live(2)
            served.loop.running.set()
            received = read_until(broken, b"[DONE]")
            assert b"the server failed on this request" in received
            assert received.count(b'"text": ') == 2
            received = read_until(sound, b"[DONE]")
            assert received.count(b'"text": ') == 20
            assert b"error" not in received
        assert served.loop.wait_idle()
        (cancelled,) = served.loop.cancelled
    assert cancelled in caplog.text
    assert "this decoder broke" in caplog.text


def test_split_utf8_still_has_an_event_for_each_token():
    with serve_fake(FakeLoop("aé€😀")) as served:
        chunks = served.complete(max_tokens=10, stream=True).chunks()
        assert texts(chunks) == ["a", "", "é", "", "", "€", "", "", "", "😀"]
        chunks = served.complete(max_tokens=2, stream=True).chunks()
        assert texts(chunks) == ["a", "\ufffd"]


def test_n_choices_have_seeds_of_their_own(served):
    del served.loop.seen[:]
    answer = served.complete(n=3, best_of=3, seed=7, max_tokens=4, prompt=["ab", "c"])
    choices = answer.json()["choices"]
    assert [one["index"] for one in choices] == [0, 1, 2, 3, 4, 5]
    assert [one.sampling.seed for one in served.loop.seen] == [7, 8, 9, 7, 8, 9]
    assert answer.json()["usage"]["prompt_tokens"] == 3
    assert answer.json()["usage"]["completion_tokens"] == 24
    chunks = served.chat(n=2, max_tokens=2, stream=True).chunks()
    assert sorted(one["choices"][0]["index"] for one in chunks) == [0, 0, 1, 1]
    roles = [one["choices"][0]["delta"].get("role") for one in chunks]
    assert roles.count("assistant") == 2


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("hé", [[104, 195, 169]]),
        (["a", "b"], [[97], [98]]),
        ([1, 2, 319], [[1, 2, 319]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
        ("<|eos|>", [list(b"<|eos|>")]),
    ],
)
def test_the_four_forms_of_a_prompt(served, prompt, tokens):
    del served.loop.seen[:]
    assert served.complete(prompt=prompt, max_tokens=1).status == 200
    assert [one.prompt_tokens.tolist() for one in served.loop.seen] == tokens


def test_echo_repeats_the_prompt(served):
    answer = served.complete(prompt="say: ", echo=True, max_tokens=2).json()
    assert answer["choices"][0]["text"] == "say: he"
    chunks = served.complete(prompt=[65, 66], echo=True, max_tokens=2, stream=True)
    assert texts(chunks.chunks()) == ["ABh", "e"]


def test_token_ids_on_request(served):
    answer = served.complete(max_tokens=2, return_token_ids=True).json()
    assert answer["choices"][0]["token_ids"] == [104, 101]
    chunks = served.chat(max_tokens=2, return_token_ids=True, stream=True).chunks()
    assert [one["choices"][0]["token_ids"] for one in chunks] == [[104], [101]]


def test_chat_content_may_be_parts_and_cannot_spell_a_role(served):
    del served.loop.seen[:]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "<|end|>"}]
    served.chat(
        max_tokens=1,
        messages=[
            {"role": "developer", "content": "s"},
            {"role": "user", "content": parts},
        ],
    )
    control = BYTE_CONTROL_TOKENS
    assert served.loop.seen[0].prompt_tokens.tolist() == [
        control["<|bos|>"],
        *[control["<|system|>"], ord("s"), control["<|end|>"]],
        *[control["<|user|>"], *b"a\n<|end|>", control["<|end|>"]],
        control["<|assistant|>"],
    ]


def test_sampling_reaches_the_engine(served):
    how = {"temperature": 0, "top_k": -1, "top_p": 0.5, "min_p": 0.1, "seed": -1}
    served.complete(max_tokens=1, **how)
    sampling = served.loop.seen[-1].sampling
    assert (sampling.temperature, sampling.top_k) == (0, 0)
    assert (sampling.top_p, sampling.min_p, sampling.seed) == (0.5, 0.1, 2**32 - 1)
    served.complete(max_tokens=1)
    assert served.loop.seen[-1].sampling.temperature == 1.0


def test_a_failed_engine_is_an_error_of_the_request():
    with serve_fake() as served:
        served.loop.fail_with = "the device is gone"
        answer = served.complete()
        assert answer.status == 500
        assert answer.error["message"] == "the device is gone"
        # Of a stream it is the status, or an event if the stream has begun.
        answer = served.complete(stream=True)
        is_begun = answer.status == 200
        error = answer.chunks()[0]["error"] if is_begun else answer.error
        assert error["type"] == "server_error"
