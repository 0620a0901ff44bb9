"""/v1/responses and /v1/messages: events, endings, refusals, and bodies as chats."""

import itertools
import json
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from msgspec import to_builtins

from jserve.server.block_answers import BlockFormat
from jserve.server.protocol import parse_body
from jserve.server.translated import MessagesRequest, ResponsesRequest
from jserve.text.answer_parts import CallDelta, Delta
from jserve.text.tokenizer import load_tokenizer
from tests.fake_loop import FakeLoop
from tests.fake_server import serve_fake

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
}
ARGUMENTS = '{"city": "Rome"}'
CALL = f'<tool_call>{{"name": "look", "arguments": {ARGUMENTS}}}</tool_call>'
ANSWER = f"<think>so</think>I look.{CALL}{CALL}"
FLAT: Any = {"type": "function", "name": "look", "parameters": SCHEMA, "strict": True}
CUSTOM: Any = {"name": "look", "input_schema": SCHEMA}
HI: Any = [{"role": "user", "content": "hi"}]


def script(text):
    """A script that writes a text and ends."""
    tokens = [*text.encode(), *sorted(load_tokenizer(None).eos_token_ids)]
    return lambda request: tokens


@pytest.fixture(scope="module")
def calling():
    """A server whose answer reasons, says something and calls a tool twice."""
    parsers: Any = {"reasoning_parser": "think", "tool_parser": "hermes"}
    with serve_fake(FakeLoop(script(ANSWER)), **parsers) as served:
        yield served


def post(served, path, **fields):
    return served.request("POST", f"/v1/{path}", json.dumps(fields).encode())


def events(answer):
    """The events of a stream, whose names are their types."""
    found = []
    for one in answer.body.decode().removesuffix("\n\n").split("\n\n"):
        name, data = one.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_events_of_a_response_come_in_openais_order(calling):
    url = f"{calling.url}/v1"
    with openai.OpenAI(base_url=url, api_key="k", max_retries=0) as client:
        asked: Any = {"model": "fake", "input": "hi", "tools": [FLAT]}
        asked["extra_headers"] = {"x-slo-ttft-ms": "60000"}
        with client.responses.stream(**asked) as stream:
            found: list[Any] = list(stream)
            final: Any = stream.get_final_response()
    assert [one.sequence_number for one in found] == list(range(len(found)))
    names = [one.type.removeprefix("response.") for one in found]
    call = ["output_item.added", "function_call_arguments.delta"]
    call += ["function_call_arguments.done", "output_item.done"]

    def part(kind):
        done = [f"{kind}.delta", f"{kind}.done", "content_part.done"]
        return ["output_item.added", "content_part.added", *done, "output_item.done"]

    assert [name for name, _ in itertools.groupby(names)] == [
        *("created", "in_progress", *part("reasoning_text"), *part("output_text")),
        *(*call, *call, "completed"),
    ]
    assert found[0].response.usage is None and final.usage.output_tokens > 10
    assert final.output_text == "I look." and final.tools[0].name == "look"
    assert final.usage.input_tokens_details.cached_tokens == 2
    assert final.usage.slo["attained"] and calling.loop.seen[-1].slo.ttft_s == 60
    assert final.output[-1].parsed_arguments == {"city": "Rome"}
    deltas = [one.delta for one in found if one.type.endswith("text.delta")]
    assert "".join(deltas) == "soI look." and len(deltas) > 5


def test_events_of_a_message_come_in_anthropics_order(calling):
    fields: Any = {"max_tokens": 300, "messages": HI, "tools": [CUSTOM]}
    fields["slo"] = {"ttft_s": 60}
    found = events(post(calling, "messages", **fields, stream=True))
    block = [f"content_block_{one}" for one in ("start", "delta", "stop")]
    names = [name for name, _ in itertools.groupby(one["type"] for one in found)]
    assert names == ["message_start", *block * 4, "message_delta", "message_stop"]
    assert found[0]["message"]["usage"]["cache_read_input_tokens"] == 2
    usage = found[-2]["usage"]
    assert usage["slo"]["attained"]
    assert usage["output_tokens_details"]["thinking_tokens"] > 2
    whole = post(calling, "messages", **fields).json()
    assert whole["usage"]["output_tokens"] == usage["output_tokens"]
    starts = [one for one in found if one["type"] == "content_block_start"]
    assert [one["index"] for one in starts] == [0, 1, 2, 3]
    assert starts[-1]["content_block"]["input"] == {}


def test_why_an_answer_ended(served):
    def message(**fields):
        answer = post(served, "messages", messages=HI, **fields).json()
        text = "".join(one["text"] for one in answer["content"])
        return text, answer["stop_reason"], answer["stop_sequence"]

    assert message(max_tokens=3) == ("hel", "max_tokens", None)
    stopped = message(max_tokens=9, stop_sequences=["l", "o"])
    assert stopped == ("he", "stop_sequence", "l")
    answer = post(served, "responses", input="hi", max_output_tokens=3).json()
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    named = {"type": "tool", "name": "look"}
    with serve_fake(FakeLoop(script(ARGUMENTS))) as ending:
        fields = {"max_tokens": 99, "messages": HI, "tools": [CUSTOM]}
        answer = post(ending, "messages", **fields, tool_choice={"type": "none"})
        assert answer.json()["stop_reason"] == "end_turn"
        answer = post(ending, "messages", **fields, tool_choice=named).json()
    assert answer["stop_reason"] == "tool_use"
    assert answer["content"][0]["input"] == {"city": "Rome"}


def breaks(request):
    """A script that fails after some tokens."""
    if len(request.output_tokens) > 2:
        raise MemoryError("out of memory")
    return b"hello"


def test_failures_end_streams():
    with serve_fake(FakeLoop(breaks)) as served:
        *_, failed = events(post(served, "responses", input="hi", stream=True))
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"]["message"] == "out of memory"
    assert failed["response"]["output"][0]["content"][0]["text"] == "hel"
    with serve_fake(FakeLoop(breaks)) as served:
        fields = {"messages": HI, "max_tokens": 99, "stream": True}
        *_, failed = events(post(served, "messages", **fields))
    error = {"type": "api_error", "message": "out of memory"}
    assert failed == {"type": "error", "error": error}


def turns(model, **fields):
    """The turns of the chat that a body becomes."""
    chat = parse_body(model, json.dumps(fields).encode())[0].chat()
    return [one.to_turn("x") for one in chat.messages]


LOOKED = {"name": "look", "arguments": {"city": "Rome"}}
CALLED = {"type": "function", "id": "c1", "function": LOOKED}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi\nthere"},
    {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "so",
        "tool_calls": [CALLED],
    },
    {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
    {"role": "user", "content": "And?"},
]


def test_items_become_turns():
    text = {"type": "input_text", "text": "hi"}
    items: list[Any] = [
        {"role": "user", "content": [text, {**text, "text": "there"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c1", "name": "look"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        {"type": "message", "role": "user", "content": "And?"},
    ]
    items[3]["arguments"] = ARGUMENTS
    assert turns(ResponsesRequest, instructions="Be brief.", input=items) == TURNS
    asked: Any = {"input": "hi", "tools": [FLAT], "tool_choice": {**FLAT}}
    chat = parse_body(ResponsesRequest, json.dumps(asked).encode())[0].chat()
    assert to_builtins(chat.tool_choice)["function"] == {"name": "look"}
    function = {"name": "look", "parameters": SCHEMA}
    assert chat.tools == [{"type": "function", "function": function}]


def test_blocks_become_turns():
    use = {"type": "tool_use", "id": "c1", "name": "look", "input": {"city": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "c1"}
    text = {"type": "text", "text": "hi"}
    thought = {"type": "thinking", "thinking": "so", "signature": ""}
    messages = [
        {"role": "user", "content": [text, {**text, "text": "there"}]},
        {"role": "assistant", "content": [thought, {**text, "text": "I look."}, use]},
        {
            "role": "user",
            "content": [
                {**result, "content": [{**text, "text": "sunny"}]},
                {**text, "text": "And?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "Be brief.", "cache_control": {}}]
    fields = {"system": system, "messages": messages, "max_tokens": 9}
    assert turns(MessagesRequest, **fields) == TURNS
    for kind, choice in (("any", "required"), ("none", "none"), ("tool", "look")):
        asked: Any = {**fields, "tools": [CUSTOM], "tool_choice": {"type": kind}}
        asked["tool_choice"] |= {"name": "look", "disable_parallel_tool_use": True}
        chat = parse_body(MessagesRequest, json.dumps(asked).encode())[0].chat()
        found = to_builtins(chat.tool_choice)
        assert choice == (found["function"]["name"] if kind == "tool" else found)
        assert chat.parallel_tool_calls is False


def test_a_last_turn_of_the_assistant_is_continued(served):
    messages = [*HI, {"role": "assistant", "content": "Well, "}]
    post(served, "messages", max_tokens=1, messages=messages)
    text = load_tokenizer(None).decode(served.loop.seen[-1].prompt_tokens.tolist())
    assert text.endswith("Well, ")


IMAGE = {"role": "user", "content": [{"type": "input_image"}]}
CUT = {"type": "function_call", "name": "f", "arguments": "{"}
SCHEMALESS = {"format": {"type": "json_schema"}}


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"input": []}, "input", "length"),
        ({"input": [{"role": "x", "content": ""}]}, "input.0.role", "'x'"),
        ({"input": [{"type": "item_reference"}]}, "input.0.type", "item_ref"),
        ({"input": [IMAGE]}, "input.0.content.0.type", "'input_image'"),
        ({"input": [CUT]}, "input.0.arguments", "JSON"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "resp_1"),
        ({"background": True}, "background", "not supported"),
        ({"n": 2}, "n", "not supported"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "web_search"),
        ({"max_output_tokens": 10**6}, "max_output_tokens", "max_output_tokens=1"),
        ({"text": SCHEMALESS}, "text.format.schema", "missing"),
        ({"stream_options": {}}, "stream_options", "stream=true"),
    ],
)
def test_responses_that_are_refused(served, fields, param, word):
    answer = post(served, "responses", **{"input": "hi", **fields})
    assert (answer.status, answer.error["param"]) == (400, param), answer.body
    assert word in answer.error["message"]


@pytest.mark.parametrize(
    ("fields", "status", "kind", "words"),
    [
        ({}, 400, "invalid_request_error", "max_tokens is missing"),
        ({"max_tokens": 1, "model": "x"}, 404, "not_found_error", "'x' does not"),
        ({"max_tokens": 1, "mcp_servers": [1]}, 400, "invalid_request_error", "mcp"),
        (
            {"max_tokens": 1, "stop_token_ids": [9999]},
            *(400, "invalid_request_error", "stop_token_ids=9999"),
        ),
        (
            {"max_tokens": 1, "stop_sequences": 5},
            *(400, "invalid_request_error", "stop_sequences=5"),
        ),
    ],
)
def test_refusals_of_messages_have_anthropics_form(served, fields, status, kind, words):
    answer = post(served, "messages", messages=HI, **fields)
    found = answer.json()
    assert (answer.status, found["type"]) == (status, "error")
    assert found["error"]["type"] == kind and words in found["error"]["message"]


def test_the_end_of_a_call_may_come_with_text_after_it():
    form = BlockFormat(response_id="r", created_s=0, model="m", door="responses")
    usage: dict[str, Any] = {"prompt_tokens": 1, "completion_tokens": 1}
    usage["prompt_tokens_details"] = {"cached_tokens": 0}
    usage["completion_tokens_details"] = {"reasoning_tokens": 0}
    one: Any = SimpleNamespace(shown_reason="stop", stop_string=None)
    parts = [
        Delta(calls=(CallDelta(0, "look", '{"city": '),)),
        Delta("ok", calls=(CallDelta(0, None, ARGUMENTS[9:]),)),
    ]
    answer = json.loads(form.writer(0, one, lambda **_: usage).answer(parts))
    call, text = answer["output"]
    assert json.loads(call["arguments"]) == {"city": "Rome"}
    assert text["content"][0]["text"] == "ok"
