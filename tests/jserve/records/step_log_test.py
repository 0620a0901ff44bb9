import json
import os
import pathlib
import resource
from typing import Any

import pytest

from jserve.records.step_log import FIELDS, StepRecorder, read_step
from jserve_sched.steps.record import StepRecord
from tests.fakes import make_step

HEADER = {"block_tokens": 32, "max_num_seqs": 8}
MAX_BYTES = 2**16
STEP = make_step(
    num_blocks=4,
    used_rows=7,
    used_blocks=3,
    prefill_tokens=70,
    decode_pages=2,
    leaves_work=True,
    bucket_s=0.03,
    used_s=0.02,
    duration_s=0.031,
    ended_by="a secret",
)


def step(number: int = 0, **others: Any) -> StepRecord:
    return STEP._replace(step_id=number, end_s=0.25 * number, **others)


def ends_s(lines: list[Any]) -> list[float]:
    return [line[FIELDS.index("end_s")] for line in lines if isinstance(line, list)]


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "folder" / "steps.jsonl"


def record(path: pathlib.Path) -> StepRecorder:
    return StepRecorder(path, lambda: HEADER, MAX_BYTES)


def older(path: pathlib.Path) -> pathlib.Path:
    return path.with_name("steps.jsonl.1")


def lines(path: pathlib.Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_log_is_a_header_and_a_line_of_numbers_a_step(path: pathlib.Path) -> None:
    recorder = record(path)
    recorder.append(step(3))
    with pytest.raises(TypeError, match="__round__"):
        recorder.append(step(duration_s="a secret"))
    header, row = lines(path)  # at once: a crash loses no step
    recorder.end()
    assert (header["format"], header["version"]) == ("jserve-step-log", 1)
    assert header["block_tokens"] == 32
    assert header["fields"] == list(FIELDS)
    assert read_step(header["fields"], row) == step(3)._replace(ended_by="")
    assert all(type(number) in (int, float) for number in row)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_log_is_bounded_and_each_half_can_be_read_alone(path: pathlib.Path) -> None:
    recorder = record(path)
    most = 0
    for number in range(4000):
        recorder.append(step(number))
        both = [one for one in (path, older(path)) if one.exists()]
        most = max(most, sum(one.stat().st_size for one in both))
    recorder.end()
    assert MAX_BYTES / 2 < most <= MAX_BYTES
    first, second = lines(older(path)), lines(path)
    assert first[0] == second[0]
    found_s = ends_s(first + second)
    # Not one step is missing from where the older half begins.
    num_lost = 4000 - len(found_s)
    assert found_s == [0.25 * number for number in range(num_lost, 4000)]


def test_what_holds_may_change_on_the_way(
    path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    header = dict[str, object](HEADER)
    recorder = StepRecorder(path, lambda: header, MAX_BYTES)
    recorder.append(step(0))
    header["block_tokens"] = 16
    recorder.begin_stretch()
    recorder.append(step(1))
    header["step_times"] = "x" * MAX_BYTES
    recorder.begin_stretch()
    recorder.append(step(2))
    found = lines(path)
    assert [isinstance(line, dict) for line in found] == [True, False, True, False]
    assert found[2]["block_tokens"] == 16
    (message,) = caplog.messages
    assert "no longer recorded: a header of" in message


def test_a_log_of_an_earlier_run_is_continued(path: pathlib.Path) -> None:
    for number in range(2):
        recorder = record(path)
        recorder.append(step(number))
        recorder.end()
        with path.open("a") as file:
            file.write("[0.5, 8,")  # the process was killed while it wrote
    os.chmod(path, 0o644)
    record(path).end()
    found = lines(path)
    assert ends_s(found) == [0.0, 0.25]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_second_writer_is_refused(path: pathlib.Path) -> None:
    recorder = record(path)
    with pytest.raises(ValueError, match="another process records its steps in"):
        record(path)
    assert len(lines(path)) == 1
    recorder.end()
    record(path).end()


def test_what_is_not_a_log_is_left_alone(tmp_path: pathlib.Path) -> None:
    file, pipe, link = (tmp_path / name for name in ("file", "pipe", "link"))
    file.write_text('{"format":"jserve-step-times"}')
    file.chmod(0o644)
    os.mkfifo(pipe)
    link.symlink_to(file)
    with pytest.raises(ValueError, match="is not a step log"):
        record(file)
    for path in (pipe, link, tmp_path):
        with pytest.raises(ValueError, match=f"{path} is not a regular file"):
            record(path)
    assert file.read_text() == '{"format":"jserve-step-times"}'
    assert file.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("obstacle", ["a full disk", "a folder"])
def test_what_cannot_be_written_ends_the_recording_with_one_warning(
    obstacle: str, path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = record(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if obstacle == "a folder":  # where the older half should be
        (older(path) / "full").mkdir(parents=True)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        for number in range(1000):
            recorder.append(step(number))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    recorder.begin_stretch()
    recorder.end()
    (warning,) = caplog.records
    assert warning.message.startswith("steps are no longer recorded: [Errno")


def test_a_new_set_up_of_logging_does_not_end_the_record(path: pathlib.Path) -> None:
    recorder = record(path)
    recorder.append(step(1))
    recorder.close()  # as logging does with every handler
    recorder.append(step(2))
    recorder.end()
    assert ends_s(lines(path)) == [0.25, 0.5]
