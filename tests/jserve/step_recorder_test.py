import errno
import json
import os
import pathlib
import types
from typing import Any

import pytest

from jserve.step_recorder import FIELDS, MIN_MAX_BYTES, StepRecorder, rotated

HEADER = {"block_tokens": 32, "max_num_seqs": 8}


def step(number: int = 0, **others: Any) -> Any:
    return types.SimpleNamespace(
        **{
            "end_s": 0.25 * number,
            "num_rows": 8,
            "num_blocks": 4,
            "used_rows": 7,
            "used_blocks": 3,
            "decode_pages": 2,
            "block_pages": 1,
            "leaves_work": number % 2 == 1,
            "bucket_s": 0.03,
            "used_s": 0.02,
            "duration_s": 0.031,
        }
        | others
    )


def lines(path: pathlib.Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_log_is_a_header_and_a_line_of_numbers_a_step(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "folder" / "steps.jsonl"
    recorder = StepRecorder(path, HEADER, MIN_MAX_BYTES)
    recorder.append(step(3))
    recorder.close()
    header, row = lines(path)
    assert (header["format"], header["version"]) == ("jserve-step-log", 1)
    assert header["block_tokens"] == 32
    assert dict(zip(header["fields"], row, strict=True)) == {
        **{"end_s": 0.75, "num_rows": 8, "num_blocks": 4, "used_rows": 7},
        **{"used_blocks": 3, "decode_pages": 2, "block_pages": 1, "leaves_work": 1},
        **{"bucket_s": 0.03, "used_s": 0.02, "duration_s": 0.031},
    }
    assert path.stat().st_mode & 0o777 == 0o600


def test_nothing_but_the_named_numbers_gets_in(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "steps.jsonl"
    recorder = StepRecorder(path, HEADER, MIN_MAX_BYTES)
    recorder.append(step(prompt="a secret", request_id="r-17", token_ids=[4711]))
    with pytest.raises(ValueError, match="could not convert"):
        recorder.append(step(duration_s="a secret"))
    recorder.close()
    text = path.read_text()
    assert len(lines(path)[1]) == len(FIELDS)
    for private in ("secret", "r-17", "4711"):
        assert private not in text


def test_a_log_is_bounded_and_each_half_can_be_read_alone(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "steps.jsonl"
    recorder = StepRecorder(path, HEADER, MIN_MAX_BYTES)
    most = 0
    for number in range(4000):
        recorder.append(step(number))
        both = [one for one in (path, rotated(path)) if one.exists()]
        most = max(most, sum(one.stat().st_size for one in both))
    recorder.close()
    assert MIN_MAX_BYTES / 2 < most <= MIN_MAX_BYTES
    older, newer = lines(rotated(path)), lines(path)
    assert older[0] == newer[0]
    ends_s = [row[0] for row in (*older[1:], *newer[1:])]
    assert ends_s[-1] == 0.25 * 3999
    # Not one step is missing from where the older half begins.
    assert ends_s == [ends_s[0] + 0.25 * k for k in range(len(ends_s))]


def test_steps_reach_the_file_in_batches(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "steps.jsonl"
    recorder = StepRecorder(path, HEADER, MIN_MAX_BYTES)
    for number in range(63):
        recorder.append(step(number))
    assert len(lines(path)) == 1
    recorder.append(step(63))
    assert len(lines(path)) == 65
    recorder.close()


def test_what_holds_may_change_on_the_way(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "steps.jsonl"
    recorder = StepRecorder(path, HEADER, MIN_MAX_BYTES)
    recorder.append(step(0))
    recorder.use_header({"block_tokens": 16})
    recorder.append(step(1))
    recorder.use_header({"step_times": "x" * MIN_MAX_BYTES})
    recorder.append(step(2))
    recorder.close()
    (warning,) = caplog.records
    assert "too small for a header of" in warning.message
    found = lines(path)
    assert [isinstance(line, dict) for line in found] == [True, False, True, False]
    assert found[2]["block_tokens"] == 16
    with pytest.raises(ValueError, match="too small for a header of"):
        StepRecorder(path, {"step_times": "x" * MIN_MAX_BYTES}, MIN_MAX_BYTES)


def test_a_log_of_an_earlier_run_is_gone_on_with(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "steps.jsonl"
    for number in range(2):
        recorder = StepRecorder(path, HEADER, MIN_MAX_BYTES)
        recorder.append(step(number))
        recorder.close()
        with path.open("a") as file:
            file.write("[0.5, 8,")  # the process was killed while it wrote
    os.chmod(path, 0o644)
    StepRecorder(path, HEADER, MIN_MAX_BYTES).close()
    found = lines(path)
    assert [line[0] for line in found if isinstance(line, list)] == [0.0, 0.25]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["my diary\n", '{"format":"jserve-step-times"}'])
def test_a_file_that_is_no_log_is_left_alone(
    content: str, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    path.chmod(0o644)
    with pytest.raises(ValueError, match="is no step log"):
        StepRecorder(path, HEADER, MIN_MAX_BYTES)
    assert path.read_text() == content
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_is_no_regular_file_is_refused_and_left_alone(
    tmp_path: pathlib.Path,
) -> None:
    pipe, link, log = (tmp_path / name for name in ("pipe", "link", "log"))
    os.mkfifo(pipe)
    pipe.chmod(0o644)
    log.touch()
    link.symlink_to(log)
    for path, message in ((pipe, "no regular file"), (link, "is a link")):
        with pytest.raises(ValueError, match=f"{path}.*{message}"):
            StepRecorder(path, HEADER, MIN_MAX_BYTES)
    assert pipe.stat().st_mode & 0o777 == 0o644
    assert log.stat().st_size == 0


def test_a_path_that_cannot_be_written_is_told_at_once(tmp_path: pathlib.Path) -> None:
    with pytest.raises(IsADirectoryError):
        StepRecorder(tmp_path, HEADER, MIN_MAX_BYTES)
    with pytest.raises(ValueError, match=f"100 is below {MIN_MAX_BYTES} bytes"):
        StepRecorder(tmp_path / "steps.jsonl", HEADER, 100)
    assert not (tmp_path / "steps.jsonl").exists()


def test_what_stands_in_the_next_files_way_ends_the_recording(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "steps.jsonl"
    recorder = StepRecorder(path, HEADER, MIN_MAX_BYTES)
    rename = os.replace

    def replace(old: pathlib.Path, new: pathlib.Path) -> None:
        rename(old, new)
        os.mkfifo(old)

    monkeypatch.setattr(os, "replace", replace)
    for number in range(1000):
        recorder.append(step(number))
    recorder.close()
    (warning,) = caplog.records
    assert "no longer recorded" in warning.message
    assert "is no regular file" in warning.message


def test_a_full_disk_ends_the_recording_with_one_warning(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "steps.jsonl"
    recorder = StepRecorder(path, HEADER, MIN_MAX_BYTES)
    num_before, room, write = path.stat().st_size, 1000, os.write

    def write_till_full(file: int, content: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        num_bytes = write(file, content[:room])
        room -= num_bytes
        return num_bytes

    monkeypatch.setattr(os, "write", write_till_full)
    for number in range(500):
        recorder.append(step(number))
    recorder.use_header(HEADER)
    recorder.close()
    assert [one.message for one in caplog.records] == [
        "steps are no longer recorded: [Errno 28] No space left on device"
    ]
    assert path.stat().st_size == num_before + 1000
