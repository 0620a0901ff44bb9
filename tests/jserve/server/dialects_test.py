"""OpenAI's responses and Anthropic's messages, by their official clients."""

import json

import anthropic
import openai
import pydantic
import pytest

from jserve.text.tokenizer import load_tokenizer
from tests.fake_calls import FOLDER, serve_calls
from tests.fake_server import serve_fake

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
OPENAI_TOOLS = [{"type": "function", "name": "look", "parameters": PARAMETERS}]
TOOLS = [{"name": "look", "description": "Looks.", "input_schema": PARAMETERS}]
USER = {"role": "user", "content": "hi"}


@pytest.fixture(scope="module")
def served():
    with serve_calls() as served:
        yield served


@pytest.fixture(scope="module")
def responses(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        yield client.responses


@pytest.fixture(scope="module")
def messages(served):
    with anthropic.Anthropic(base_url=served.url, api_key="none") as client:
        yield client.messages


def prompt_of(served) -> list[int]:
    return served.loop.seen[-1].prompt_tokens.tolist()


def rendered(turns, tools) -> list[int]:
    return load_tokenizer(FOLDER).apply_chat_template(
        turns, tools=tools, add_generation_prompt=True
    )


def chat_tools(description):
    function = {"name": "look", **description, "parameters": PARAMETERS}
    return [{"type": "function", "function": function}]


def past(call_id):
    call = {"name": "look", "arguments": {"city": "Rome"}}
    return [
        {"role": "system", "content": "Be kind."},
        USER,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "id": call_id, "function": call}],
        },
        {"role": "tool", "tool_call_id": call_id, "content": "sunny"},
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_items_of_reasoning_text_and_calls(responses, stream):
    asked = {"model": "fake", "input": "hi", "tools": OPENAI_TOOLS}
    if stream:
        with responses.stream(**asked) as events:
            kinds = [(one.type, one.sequence_number) for one in events]
            found = events.get_final_response()
        assert [number for _, number in kinds] == list(range(len(kinds)))
        names = [name for name, _ in kinds]
        assert names[:2] == ["response.created", "response.in_progress"]
        assert names[-1] == "response.completed"
        assert names.count("response.output_item.done") == 4
        assert names.count("response.function_call_arguments.done") == 2
        assert names.count("response.output_text.delta") > 1
    else:
        found = responses.create(**asked, store=True)
    assert found.status == "completed" and found.output_text == "I look.\n"
    reasoning, text, *calls = found.output
    assert reasoning.content[0].text == "\nso\n" and text.role == "assistant"
    assert [json.loads(one.arguments) for one in calls] == [{"city": "Rome"}] * 2
    assert len({one.call_id for one in calls}) == 2
    usage = found.usage
    assert usage.output_tokens_details.reasoning_tokens > 2
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_a_response_continues_a_conversation_that_is_sent_whole(served, responses):
    call = {"type": "function_call", "call_id": "c1", "name": "look"}
    responses.create(
        model="fake",
        instructions="Be kind.",
        input=[
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            call | {"arguments": '{"city": "Rome"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        ],
        tools=OPENAI_TOOLS,
        extra_headers={"x-slo-ttft-ms": "1500"},
    )
    assert prompt_of(served) == rendered(past("c1"), chat_tools({}))
    assert served.loop.seen[-1].slo.ttft_s == 1.5


def test_a_response_may_have_to_be_of_a_model(served, responses):
    class City(pydantic.BaseModel):
        city: str

    with pytest.raises(pydantic.ValidationError):  # the script is no such JSON
        responses.parse(model="fake", input="hi", text_format=City)
    matcher = served.loop.seen[-1].constraint.matcher
    tokens = load_tokenizer(FOLDER).encode_part('{"city":"Rome"}')
    assert matcher.deep_copy().validate_tokens(tokens) == len(tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_has_blocks_of_thinking_text_and_calls(messages, stream):
    asked = {"model": "fake", "max_tokens": 200, "messages": [USER], "tools": TOOLS}
    if stream:
        with messages.stream(**asked) as events:
            names = [one.type for one in events]
            found = events.get_final_message()
        assert names[0] == "message_start" and names[-1] == "message_stop"
        assert names.count("content_block_start") == 4
        assert names.count("content_block_stop") == 4
    else:
        found = messages.create(**asked)
    assert found.stop_reason == "tool_use"
    thinking, text, *calls = found.content
    assert thinking.thinking == "\nso\n" and text.text == "I look.\n"
    assert [one.input for one in calls] == [{"city": "Rome"}] * 2
    assert found.usage.output_tokens > 40 and found.usage.input_tokens > 40


def test_a_message_continues_a_conversation_that_is_sent_whole(served, messages):
    use = {"type": "tool_use", "id": "t1", "name": "look", "input": {"city": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "sunny"}
    asked = {
        "model": "fake",
        "system": [{"type": "text", "text": "Be kind."}],
        "messages": [
            USER,
            {"role": "assistant", "content": [use]},
            {"role": "user", "content": [result]},
        ],
        "tools": TOOLS,
    }
    messages.create(**asked, max_tokens=9, metadata={"user_id": "me"})
    wanted = rendered(past("t1"), chat_tools({"description": "Looks."}))
    assert prompt_of(served) == wanted
    assert messages.count_tokens(**asked).input_tokens == len(wanted)


def test_a_message_may_have_to_be_a_call(served, messages):
    asked = {"model": "fake", "messages": [USER], "tools": TOOLS, "max_tokens": 1}
    for choice in ({"type": "any"}, {"type": "tool", "name": "look"}):
        messages.create(**asked, tool_choice=choice)
        assert served.loop.seen[-1].constraint is not None


def test_clients_of_messages_send_their_key_in_a_header_of_its_own(tmp_path):
    (tmp_path / "keys").write_text("secret\n")
    with serve_fake(api_key_file=tmp_path / "keys") as served:
        body = b'{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}'
        for key, status in (("secret", 200), ("other", 401)):
            answer = served.request("POST", "/v1/messages", body, {"x-api-key": key})
            assert answer.status == status
        assert answer.json()["error"]["type"] == "authentication_error"


def test_scores_of_a_prompt_are_refused_where_no_field_holds_them(responses):
    with pytest.raises(openai.BadRequestError) as refused:
        responses.create(model="fake", input="hi", extra_body={"prompt_logprobs": 1})
    assert refused.value.param == "prompt_logprobs"
