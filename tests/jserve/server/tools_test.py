"""Tools of a chat: what the model sees of them, and calls in its answer."""

import json
from typing import Any

import pytest

from jserve.text.tokenizer import load_tokenizer
from tests.fake_calls import CALL, FOLDER, serve_calls
from tests.fake_loop import FakeLoop
from tests.fake_server import serve_fake

USER = {"role": "user", "content": "hi"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}},
    "required": ["city"],
    "$defs": {"city": {"enum": ["Paris", "Rome"]}},
}
TOOLS = [
    {"type": "function", "function": {"name": "look", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "stop", "description": "Ends it."}},
]


@pytest.fixture(scope="module")
def served():
    with serve_calls() as served:
        yield served


def merged(chunks):
    """The message that a client puts together of a stream's deltas."""
    message: dict[str, Any] = {"content": "", "reasoning_content": ""}
    message["tool_calls"] = []
    for one in (chunk["choices"][0]["delta"] for chunk in chunks):
        for name in ("content", "reasoning_content"):
            message[name] += one.get(name, "")
        for call in one.get("tool_calls", ()):
            if call["index"] == len(message["tool_calls"]):
                message["tool_calls"].append(call)
            else:
                more = call["function"]["arguments"]
                message["tool_calls"][call["index"]]["function"]["arguments"] += more
    return message


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_taken_apart(served, stream):
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = served.chat(messages=[USER], tools=TOOLS, stream=stream, **options)
    if stream:
        *chunks, last = answer.chunks()
        message, usage = merged(chunks), last["usage"]
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert all(one["choices"][0]["delta"] for one in chunks[:-1])
        reason = chunks[-1]["choices"][0]["finish_reason"]
        assert len(chunks) > 10, "arguments come as they are written"
    else:
        [choice] = answer.json()["choices"]
        message, reason = choice["message"], choice["finish_reason"]
        usage = answer.json()["usage"]
    assert message["reasoning_content"] == "\nso\n"
    assert message["content"] == "I look.\n"
    assert reason == "tool_calls"
    assert usage["completion_tokens_details"]["reasoning_tokens"] > 2
    assert len({one["id"] for one in message["tool_calls"]}) == 2
    for one in message["tool_calls"]:
        assert one["type"] == "function" and one["function"]["name"] == "look"
        assert json.loads(one["function"]["arguments"]) == {"city": "Rome"}


def test_an_answer_may_have_to_end_with_its_first_call(served):
    asked = {"messages": [USER], "tools": TOOLS, "parallel_tool_calls": False}
    [choice] = served.chat(**asked).json()["choices"]
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS, "tool_choice": "none"}])
def test_without_tools_calls_are_text(served, fields):
    message = served.chat(messages=[USER], **fields).json()["choices"][0]["message"]
    assert message["content"].endswith(CALL) and "tool_calls" not in message


def test_the_template_gets_tools_and_turns_that_called_them(served):
    call: dict[str, Any] = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "look", "arguments": '{"city": "Rome"}'},
    }
    turns: list[dict[str, Any]] = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    assert served.chat(messages=turns, tools=TOOLS).status == 200
    call["function"]["arguments"] = {"city": "Rome"}
    wanted = load_tokenizer(FOLDER).apply_chat_template(
        [USER, {"role": "assistant", "content": "", "tool_calls": [call]}, turns[2]],
        tools=TOOLS,
        add_generation_prompt=True,
    )
    assert served.loop.seen[-1].prompt_tokens.tolist() == wanted


def test_a_call_may_be_required(served):
    def constraint(choice, **fields):
        asked = {"messages": [USER], "tools": TOOLS, "tool_choice": choice} | fields
        assert served.chat(max_tokens=1, **asked).status == 200
        matcher = served.loop.seen[-1].constraint.matcher

        def may_be(value):
            tokens = load_tokenizer(FOLDER).encode_part(json.dumps(value))
            return matcher.deep_copy().validate_tokens(tokens) == len(tokens)

        return may_be

    look = {"name": "look", "parameters": {"city": "Rome"}}
    stop = {"name": "stop", "parameters": {}}
    may_be = constraint("required")
    assert may_be([look, stop]) and not may_be([]) and not may_be(look)
    assert not may_be([look | {"parameters": {"city": "Bonn"}}])
    other: dict[str, Any] = {
        "type": "object",
        "properties": {"city": {"$ref": "#/definitions/city"}},
    }
    other["definitions"] = {"city": {"const": "Bonn"}}
    tool = {"type": "function", "function": {"name": "go", "parameters": other}}
    may_be = constraint("required", tools=[*TOOLS, tool])
    assert may_be([{"name": "go", "parameters": {"city": "Bonn"}}, look])
    assert not may_be([{"name": "go", "parameters": {"city": "Rome"}}])
    may_be = constraint("required", parallel_tool_calls=False)
    assert may_be([look]) and not may_be([look, stop])
    may_be = constraint({"type": "function", "function": {"name": "look"}})
    assert may_be({"city": "Rome"}) and not may_be({"city": "Bonn"})


def test_calls_that_were_required_are_in_the_answer():
    def answer(text, choice):
        with serve_fake(FakeLoop(text)) as served:
            fields = {"tools": TOOLS, "tool_choice": choice, "max_tokens": len(text)}
            [choice] = served.chat(messages=[USER], **fields).json()["choices"]
        [call] = choice["message"]["tool_calls"]
        assert choice["message"]["content"] is None
        return call["function"]

    city = '{"city": "Rome"}'
    function = {"name": "look", "arguments": city}
    text = f'[{{"name": "look", "parameters": {city}}}]'
    assert answer(text, "required") == function
    named = {"type": "function", "function": {"name": "look"}}
    assert answer(city, named) == function


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tools": [{"type": "function"}]}, "tools", ["[0]", "function"]),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools", ["'look' twice"]),
        ({"tools": TOOLS}, "tools", ["--tool_parser"]),
        ({"tool_choice": "required"}, "tool_choice", ["needs tools"]),
        (
            {
                "tools": TOOLS,
                "tool_choice": {"type": "function", "function": {"name": "go"}},
            },
            "tool_choice.function.name",
            ["'go'", "look, stop"],
        ),
        ({"tool_choice": "often"}, "tool_choice", ["'often'"]),
        (
            {"tools": TOOLS, "tool_choice": "required", "guided_regex": "a"},
            "tool_choice",
            ["guided_regex", "exclude"],
        ),
    ],
)
def test_tools_that_cannot_be_called_are_refused(fields, param, words):
    with serve_fake() as served:
        answer = served.chat(**fields)
    assert (answer.status, answer.error["param"]) == (400, param), answer.error
    for word in words:
        assert word in answer.error["message"]
