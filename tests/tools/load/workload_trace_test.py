import pathlib

import pytest

from jserve_sched.requests.service_class import ServiceClass
from jserve_sched.simulation.workload import draw_class
from jserve_tools.load.workload_trace import (
    DEFAULT_TRACE,
    TraceRow,
    mean_rate,
    read_trace,
    row_classes,
)

HEADER = "arrival_s,prompt_tokens,output_tokens\n"
CLASSES = (ServiceClass(name="a", share=0.5), ServiceClass(name="b", share=0.5))


def write(tmp_path: pathlib.Path, text: str) -> pathlib.Path:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return path


def test_committed_trace_is_whole_and_says_its_licence() -> None:
    rows = read_trace(DEFAULT_TRACE)
    assert len(rows) == 1000
    assert rows[0] == TraceRow(0.0, 374, 44)
    assert max(row.prompt_tokens + row.output_tokens for row in rows) < 16_384
    note = (DEFAULT_TRACE.parent / "README.md").read_text()
    for fact in ("CC-BY 4.0", "Splitwise", "AzurePublicDataset"):
        assert fact in note


def test_first_rows_count_from_the_first_arrival(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, HEADER + "5,10,1\n6.5,20,2\n7,30,3\n")
    rows = read_trace(path, num_requests=2)
    assert rows == [TraceRow(0.0, 10, 1), TraceRow(1.5, 20, 2)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks"),
        ("arrival_s,prompt_tokens\n0,1\n", r"lacks \['output_tokens'\]"),
        (HEADER, "no requests"),
        (HEADER + "0,1,1\n1,x,1\n", "line 3: prompt_tokens='x' is not a number"),
        (HEADER + "0,1,1\n1,1\n", "line 3: output_tokens=None is not a number"),
        (HEADER + "0,0,1\n", "line 2: prompt_tokens=0 is below 1"),
        (HEADER + "0,1.5,1\n", "line 2: prompt_tokens=1.5 is not a whole number"),
        (HEADER + "-1,1,1\n", "line 2: arrival_s=-1 is below 0"),
        (HEADER + "nan,1,1\n", "line 2: arrival_s=nan is below 0"),
        (HEADER + "2,1,1\n1,1,1\n", "line 3: arrival_s=1.0 is before the line above"),
        (HEADER + "0,1,1\n", "num_requests=2, but .* has 1"),
    ],
)
def test_errors_name_line_and_value(
    tmp_path: pathlib.Path, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_trace(write(tmp_path, text), num_requests=2)


def test_a_column_of_classes_names_known_ones(tmp_path: pathlib.Path) -> None:
    header = "service_class," + HEADER
    path = write(tmp_path, header + "b,0,1,1\na,1,1,1\n")
    rows = read_trace(path, classes=CLASSES)
    assert [row.service_class for row in rows] == ["b", "a"]
    assert [one.name for one in row_classes(rows, CLASSES, 3)] == ["b", "a"]
    assert [row.service_class for row in read_trace(path)] == ["", ""]
    for name in ("c", ""):
        path = write(tmp_path, f"{header}a,0,1,1\n{name},1,1,1\n")
        message = rf"line 3: service_class='{name}' is not one of \['a', 'b'\]"
        with pytest.raises(ValueError, match=message):
            read_trace(path, classes=CLASSES)


def test_rows_without_a_class_get_one_by_share() -> None:
    rows = [TraceRow(0.0, 1, 1)] * 9
    drawn = row_classes(rows, CLASSES, 3)
    assert drawn == [draw_class(CLASSES, 3, row) for row in range(9)]
    with pytest.raises(ValueError, match=r"add up to 0\.5, not 1"):
        row_classes(rows, CLASSES[:1], 3)


def test_a_rate_needs_time_between_arrivals() -> None:
    rows = [TraceRow(0.0, 10, 4), TraceRow(1.0, 3, 1), TraceRow(4.0, 20, 8)]
    assert mean_rate(rows) == 0.5  # two arrivals after the first, in four seconds
    with pytest.raises(ValueError, match="no rate"):
        mean_rate(rows[:1])


AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319600,3180,8
2024-05-10 00:00:00.009930+00:00,110,27
"""
BURSTGPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,276,693,Conversation log
118,GPT-4,900,0,900,API log
173,ChatGPT,1360,647,2007,Conversation log
180,ChatGPT,0,0,0,API log
218,ChatGPT,185,215,400,Conversation log
230,GPT-4,3003,1,3004,API log
277,ChatGPT,197,14,211,Conversation log
317,ChatGPT,236,7,243,Conversation log
"""
MOONCAKE = """\
{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 7]}
{"timestamp": 3000, "input_length": 513, "output_length": 9, "hash_ids": [0, 8]}
"""
SHAREGPT = """[{"id": "a", "conversations": [
  {"from": "human", "value": "123456789"}, {"from": "gpt", "value": "1234"},
  {"from": "human", "value": "12"}, {"from": "gpt", "value": ""},
  {"from": "human", "value": "1"}, {"from": "gpt", "value": "12345"}]}]
"""


def test_public_traces_are_read_as_published(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    azure = read_trace(write(tmp_path, AZURE))
    assert azure[1].arrival_s == pytest.approx(0.052)
    assert (azure[1].prompt_tokens, azure[1].output_tokens) == (3180, 8)
    assert len(azure) == 3 and not caplog.records
    burst = read_trace(write(tmp_path, BURSTGPT))
    assert len(burst) == 8 and burst[3] == TraceRow(168.0, 1360, 647)
    assert "2 rows without tokens are left out" in caplog.text
    mooncake = read_trace(write(tmp_path, MOONCAKE))
    assert mooncake == [
        TraceRow(0.0, 600, 5, "", (0, 7)),
        TraceRow(3.0, 513, 9, "", (0, 8)),
    ]
    caplog.clear()
    talk = read_trace(write(tmp_path, SHAREGPT))
    assert talk == [TraceRow(0.0, 3, 1, "", (0,)), TraceRow(2.0, 6, 2, "", (0,))]
    assert "1 rows without tokens" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEADER + "0,100000000000,1\n", "prompt_tokens=100000000000 is above 16777216"),
        (AZURE.replace("110", "-5"), "line 4: prompt_tokens=-5 is below 0"),
        (AZURE.replace("2024-05-10", "May"), "line 4: arrival_s='May .*not a number"),
        (MOONCAKE.replace("8]", "-8]"), "line 2: hash_ids must be one id of 0 to"),
        (MOONCAKE.replace("7]", "]"), "trace.csv: "),
        ('{"timestamp": 1}', "a row lacks 'input_length'"),
        ('[{"id": "a"}]', "a row lacks 'conversations'"),
    ],
)
def test_broken_public_traces_are_refused_in_one_line(
    tmp_path: pathlib.Path, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        read_trace(write(tmp_path, text))
    assert "\n" not in str(raised.value)
