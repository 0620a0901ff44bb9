import json
import random

import pytest

from jserve.text.answer_parts import (
    Delta,
    NamedCallParser,
    Parser,
    ReasoningParser,
    ToolParser,
    find_tool_form,
    has_open_reasoning,
)

Calls = list[tuple[str, str]]


def taken_apart(parser: Parser, text: str, seed: int) -> tuple[str, str, Calls]:
    """Content, reasoning and calls of a text that comes in pieces."""
    rng, found, calls = random.Random(seed), Delta(), Calls()
    while text:
        size = rng.choice([1, 2, 7, 40])
        found += parser.push(text[:size])
        text = text[size:]
    found += parser.finish()
    for index, name, arguments in found.calls:
        if name is not None:
            assert index == len(calls)
            calls.append((name, ""))
        calls[index] = (calls[index][0], calls[index][1] + arguments)
    return found.content, found.reasoning, calls


ARGUMENTS = '{"city": "a } \\" ] b", "at": [1, {"x": null}]}'
CALL = f'{{"name": "look", "arguments": {ARGUMENTS}}}'
LATE = f'{{"arguments": {ARGUMENTS}, "name": "look"}}'
LOOK = ("look", ARGUMENTS)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        ("hermes", "Hi <tool> 1 < 2", "Hi <tool> 1 < 2", []),
        ("hermes", f"Wait.<tool_call>\n{CALL}\n</tool_call>", "Wait.", [LOOK]),
        (
            "hermes",
            f"<tool_call>{CALL}</tool_call>\n<tool_call>\n{CALL}\n</tool_call>",
            "",
            [LOOK, LOOK],
        ),
        ("hermes", f"<tool_call>{LATE}</tool_call>", "", [LOOK]),
        ("hermes", '<tool_call>{"a": 1}</tool_call>', '<tool_call>{"a": 1}', []),
        ("hermes", "<tool_call>no json", "<tool_call>no json", []),
        ("hermes", "so <tool_ca", "so <tool_ca", []),
        ("llama3_json", CALL.replace("arguments", "parameters"), "", [LOOK]),
        ("llama3_json", f"<|python_tag|>{CALL}; {CALL}", "", [LOOK, LOOK]),
        ("llama3_json", f"Text {CALL}", f"Text {CALL}", []),
        ("mistral", f"[TOOL_CALLS] [{CALL}, {CALL}]", "", [LOOK, LOOK]),
        ("mistral", f"[TOOL_CALLS]look[ARGS]{ARGUMENTS}", "", [LOOK]),
        (
            "mistral",
            f"a[TOOL_CALLS]look{ARGUMENTS}[TOOL_CALLS]look{ARGUMENTS}",
            "a",
            [LOOK, LOOK],
        ),
    ],
)
def test_calls_are_found_however_the_text_comes(
    form: str, text: str, content: str, calls: Calls, seed: int
) -> None:
    found = taken_apart(ToolParser(form), text, seed)  # type: ignore[arg-type]
    same = [(name, json.loads(one)) for name, one in found[2]]
    assert (found[0], same) == (content, [(one, json.loads(two)) for one, two in calls])


def test_arguments_come_as_they_are_written() -> None:
    parser = ToolParser("hermes")
    parser.push("<tool_call>")
    assert parser.push('{"name": "f", "arguments": {"a"').calls == (
        (0, "f", ""),
        (0, None, '{"a"'),
    )
    assert parser.push(": 1").calls == ((0, None, ": 1"),)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("has_begun", "text", "content", "reasoning"),
    [
        (False, "<think>so</think>\n\nHi", "Hi", "so"),
        (False, "Hi <think>", "Hi <think>", ""),
        (False, "<thi", "<thi", ""),
        (True, "so</think>Hi", "Hi", "so"),
        (True, "so </thi", "", "so </thi"),
    ],
)
def test_reasoning_is_split_off(
    has_begun: bool, text: str, content: str, reasoning: str, seed: int
) -> None:
    parser = ReasoningParser(None, has_begun=has_begun)
    assert taken_apart(parser, text, seed) == (content, reasoning, [])
    parser = ReasoningParser(ToolParser("hermes"), has_begun=True)
    found = taken_apart(parser, f"a</think><tool_call>{CALL}</tool_call>", seed)
    assert found[:2] == ("", "a") and found[2] == [LOOK]


def test_a_named_call_is_its_arguments() -> None:
    assert taken_apart(NamedCallParser("f"), '{"a": 1}', 0)[2] == [("f", '{"a": 1}')]


def test_the_form_is_that_of_the_template() -> None:
    assert find_tool_form("... <tool_call> ...") == "hermes"
    assert find_tool_form("{{ '[TOOL_CALLS]' }}") == "mistral"
    assert find_tool_form("plain") is None
    assert has_open_reasoning("<think>a</think><think>\n")
    assert not has_open_reasoning("<think>a</think>")
