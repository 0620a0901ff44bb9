"""Fields that say what an answer has to be."""

import pytest

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("fields", "text", "other"),
    [
        ({"response_format": {"type": "json_object"}}, '{"b":[', "["),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "n", "schema": SCHEMA, "strict": True},
                }
            },
            '{"a":1',
            '{"a":"',
        ),
        ({"guided_json": SCHEMA}, '{"a":1', '{"a":"'),
        ({"guided_json": '{"type": "integer"}'}, "12", "a"),
        ({"guided_regex": "a+b"}, "aab", "b"),
        ({"guided_choice": ["yes", "no"]}, "yes", "ny"),
        ({"guided_grammar": 'start: "a" | "b"'}, "b", "c"),
        ({"structured_outputs": {"json": SCHEMA}}, '{"a":1', '{"a":"'),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "no", "yn"),
        ({"structured_outputs": {"json_object": True}}, "{", "1"),
    ],
)
def test_each_field_is_a_constraint_of_the_request(served, fields, text, other):
    assert served.complete(max_tokens=1, n=2, **fields).status == 200
    first, second = (one.constraint for one in served.loop.seen[-2:])
    assert first.matcher.validate_tokens(list(text.encode())) == len(text)
    assert first.matcher.validate_tokens(list(other.encode())) < len(other)
    for byte in text.encode():
        first.accept(byte)
    assert not first.error  # and the other output is where it was
    assert second.matcher.validate_tokens(list(text.encode())) == len(text)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", ["'xml'"]),
        (
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema.schema",
            ["missing"],
        ),
        ({"guided_json": {"type": "objekt"}}, "guided_json", ["Invalid type: objekt"]),
        ({"guided_choice": []}, "guided_choice", [">= 1"]),
        ({"guided_regex": "a" * 70_000}, "guided_regex", ["70000", "65536"]),
        ({"guided_regex": "("}, "guided_regex", ["unclosed group"]),
        (
            {"guided_regex": "a+", "allowed_token_ids": [98, 99]},
            "allowed_token_ids",
            ["none may begin what the grammar"],
        ),
        (
            {"guided_regex": "a+", "allowed_token_ids": [-1]},
            *("allowed_token_ids", ["-1"]),
        ),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", ["exclude"]),
        ({"guided_regex": "a", "min_tokens": 2}, "min_tokens", ["=2", "guided_regex"]),
        (
            {"structured_outputs": {"rex": "a"}},
            "structured_outputs.rex",
            ["unknown", "regex"],
        ),
    ],
)
def test_a_constraint_that_cannot_be_kept_is_refused(served, fields, param, words):
    answer = served.complete(**fields)
    assert (answer.status, answer.error["param"]) == (400, param), answer.error
    for word in words:
        assert word in answer.error["message"]


def test_text_and_nothing_are_no_constraints(served):
    harmless = {"response_format": {"type": "text"}, "structured_outputs": None}
    assert served.complete(max_tokens=1, **harmless).status == 200
    assert served.loop.seen[-1].constraint is None
