"""The program as people run it, against a scripted server.

It defines flags, so no test imports it.
"""

import json
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.fake_loop import STARTED, FakeLoop
from tests.fake_server import serve_fake
from tests.programs import finish, start
from tests.report_schema import undocumented

CLASSES = [
    {"name": "tight", "share": 0.5, "ttft_slowdown": 50, "tbt_step_multiple": 50},
    {"name": "lax", "share": 0.5, "ttlt_s": 60},
]


def bench(*arguments: str) -> subprocess.Popen[str]:
    return start("-m", "jserve_tools.bench", *arguments)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    loop = FakeLoop(num_slots=32)
    loop.start_up = STARTED
    with serve_fake(loop) as served:
        yield served.url


def test_replay_over_http_end_to_end(url: str, tmp_path: pathlib.Path) -> None:
    classes, output = tmp_path / "classes.json", tmp_path / "out"
    classes.write_text(json.dumps(CLASSES))
    program = bench(
        f"--url={url}",
        *("--num_requests=25", "--length_scale=0.02", "--load=0.5", "--capacity_s=1"),
        *(f"--service_classes={classes}", f"--output={output}"),
    )
    out, line = finish(program)
    report = json.loads((output / "report.json").read_text())
    assert (output / "report.html").exists() and not (output / "runs.jsonl").exists()
    assert not undocumented(report)
    (run,) = report["runs"]
    assert set(run) >= {
        *("policy", "bucket_strategy", "qps", "load", "seed", "num_finished"),
        *("violations_by_cause", "attainment", "by_class", "ttft_s", "tbt_s", "e2e_s"),
        *("pad_share_tokens", "pad_share_time", "plan_ms", "num_programs"),
        *("num_compiles_after_warmup", "prefix_hit_tokens", "start_up", "buckets"),
    }
    assert run["num_requests"] == run["num_finished"] == len(run["requests"]) == 25
    assert run["qps"] == pytest.approx(
        0.5 * report["capacity"]["requests_per_s"], rel=1e-3
    )
    assert set(run["by_class"]) == {"tight", "lax"}
    assert line["runs"][0] == {k: v for k, v in run.items() if k != "requests"}
    for text in ("capacity:", "TTFT bound", "attained, tight"):
        assert text in out


def test_an_interrupted_call_is_continued_and_a_finished_one_starts_again(
    url: str, tmp_path: pathlib.Path
) -> None:
    output, trace = tmp_path / "out", tmp_path / "mine.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,8,2\n0.1,8,2\n0.5,8,2\n")
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps([{"name": "lax", "share": 1.0, "ttlt_s": 60}]))

    def call(*arguments: str) -> subprocess.Popen[str]:
        return bench(
            *(f"--url={url}", "--qps=40,1", f"--trace={trace}", "--nohtml"),
            *(f"--service_classes={classes}", f"--output={output}", *arguments),
        )

    def num_kept() -> int:  # the baseline, then a line for each run
        kept = output / "runs.jsonl"
        return kept.read_text().count("\n") if kept.exists() else 0

    program = call()
    while num_kept() < 2 and program.poll() is None:
        time.sleep(0.01)
    program.send_signal(signal.SIGTERM)
    _, err = program.communicate(timeout=60)
    assert program.returncode == 1 and "Traceback" not in err
    assert err.splitlines()[-1].endswith("ended by SIGTERM; finished runs are kept")
    out, first = finish(call())
    assert [run["qps"] for run in first["runs"]] == [40.0, 1.0]
    assert first["num_resumed"] == 1
    assert "1 of 2 runs were finished by an interrupted call" in out
    out, second = finish(call(f"--compare={output / 'report.json'}"))
    assert second["num_resumed"] == 0
    assert "+ better, - worse, = within the noise" in out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--num_requests=99999"], 1, "num_requests=99999, but"),
        (["--load=fast"], 2, "load=fast"),
        (["--compare=/none.json"], 1, "/none.json"),
        (["--output=/dev/null/x"], 1, "/dev/null"),
        (["--url=http://127.0.0.1:9"], 1, "nothing answers at http://127.0.0.1:9"),
    ],
)
def test_a_mistake_takes_one_line_and_no_work(
    tmp_path: pathlib.Path, arguments: list[str], status: int, message: str
) -> None:
    program = bench(f"--output={tmp_path}", *arguments)
    out, err = program.communicate(timeout=60)
    assert (program.returncode, out) == (status, "")
    lines = [line for line in err.splitlines() if not line.startswith("[")]
    assert len(lines) == 1 and message in lines[0]
    assert not list(tmp_path.iterdir())
