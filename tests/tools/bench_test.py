"""The program as people run it, against a fake server and in processes of its own.

It defines flags, so no test imports it.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from report_schema import undocumented

ROOT = pathlib.Path(__file__).parents[2]
PATH = os.pathsep.join(str(ROOT / part) for part in (".", "models", "sched", "tools"))
CLASSES = [
    {"name": "tight", "share": 0.5, "ttft_slowdown": 50, "tbt_step_multiple": 50},
    {"name": "lax", "share": 0.5, "ttlt_s": 60},
]


def bench(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jserve_tools.bench", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": PATH},
    )


def write_lax_class(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "lax.json"
    path.write_text(json.dumps([{"name": "lax", "share": 1.0, "ttlt_s": 60}]))
    return path


@pytest.fixture(scope="module")
def url(
    fake_server_file: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    port = 20_000 + os.getpid() % 10_000
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, str(fake_server_file), f"--port={port}"],
            stdout=output,
            stderr=output,
        )
    yield f"http://127.0.0.1:{port}"
    server.send_signal(signal.SIGTERM)
    assert server.wait(20) == 0


def test_replay_over_http_end_to_end(url: str, tmp_path: pathlib.Path) -> None:
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps(CLASSES))
    program = bench(
        f"--url={url}",
        "--num_requests=25",
        "--length_scale=0.02",
        "--load=0.5",
        "--capacity_s=1",
        f"--service_classes={classes}",
        f"--output={tmp_path / 'out'}",
        "--profile_host",
    )
    out, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    line = json.loads(out.splitlines()[-1])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (tmp_path / "out" / "report.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("figures", "report.html", "report.json", "report.png")
    ]
    assert not undocumented(report)
    assert set(report) >= {
        "schema_version",
        "device",
        "jax",
        "command",
        "workload",
        "yardstick",
        "capacity",
        "runs",
    }
    (run,) = report["runs"]
    assert set(run) >= {
        *("policy", "bucket_strategy", "qps", "load", "seed", "num_requests"),
        *("num_finished", "num_violations", "attainment", "by_class", "ttft_s"),
        *("tbt_s", "e2e_s", "output_tokens_per_s", "pad_share_tokens"),
        *("pad_share_time", "num_steps", "num_programs", "plan_ms"),
        *("num_compiles_after_warmup", "prefix_hit_tokens", "host_profile"),
    }
    assert run["num_requests"] == run["num_finished"] == 25
    assert run["prefix_hit_tokens"] == 0
    profile = run["host_profile"][0]
    assert profile["overlap"] is False
    assert profile["median_ms"]["detokenise"] == pytest.approx(0.2)
    assert profile["host_ms"] == pytest.approx(0.5 - 0.1 + 0.2)
    assert run["qps"] == pytest.approx(
        0.5 * report["capacity"]["requests_per_s"], rel=1e-3
    )
    assert set(run["by_class"]) == {"tight", "lax"}
    assert len(run["requests"]) == 25
    assert line["runs"][0] == {k: v for k, v in run.items() if k != "requests"}
    for text in (
        "capacity:",
        "TTFT bound",
        "attained tight",
        "host/device",
        "report.png",
    ):
        assert text in out
    assert run["start_up"]["executable_bytes"] == 4000
    assert run["buckets"]["block_edges"] == [0, 4, 8, 16]
    assert report["staircase"]["num_rows"] == 32


def test_an_interrupted_call_goes_on_and_a_finished_one_starts_anew(
    url: str, tmp_path: pathlib.Path
) -> None:
    def start() -> subprocess.Popen[str]:
        return bench(
            f"--url={url}",
            *("--qps=40,2", "--num_requests=5", "--length_scale=0.02", "--nohtml"),
            f"--service_classes={write_lax_class(tmp_path)}",
            f"--output={tmp_path / 'out'}",
            *(() if not report.exists() else (f"--compare={report}",)),
        )

    def finish() -> tuple[str, dict]:
        program = start()
        out, err = program.communicate(timeout=60)
        assert program.returncode == 0, err
        return out, json.loads(out.splitlines()[-1])

    report = tmp_path / "out" / "report.json"
    runs = tmp_path / "out" / "runs"
    program = start()
    while not list(runs.glob("*.json.gz")) and program.poll() is None:
        time.sleep(0.01)
    program.send_signal(signal.SIGINT)
    program.communicate(timeout=60)
    assert not report.exists()
    out, first = finish()
    assert [run["qps"] for run in first["runs"]] == [40.0, 2.0]
    assert first["num_resumed"] == 1
    assert "1 of 2 runs are those of an interrupted call" in out
    assert not runs.exists()
    out, second = finish()
    assert second["num_resumed"] == 0
    assert "+ better, - worse, = within the noise" in out
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_short_trace_is_replayed_whole(url: str, tmp_path: pathlib.Path) -> None:
    trace = tmp_path / "mine.csv"
    rows = "".join(f"{i / 100},8,2\n" for i in range(50))
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    program = bench(
        f"--url={url}",
        f"--trace={trace}",
        *("--rate_scale=1", "--nohtml"),
        f"--service_classes={write_lax_class(tmp_path)}",
        f"--output={tmp_path / 'out'}",
    )
    out, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["runs"][0]["num_finished"] == 50


def test_closed_loop_over_http(url: str, tmp_path: pathlib.Path) -> None:
    program = bench(
        f"--url={url}",
        "--mode=closed",
        "--clients=1,4",
        "--num_requests=8",
        "--prompt_tokens=8",
        "--output_tokens=4",
        *("--api=chat", "--nohtml"),
        f"--output={tmp_path}",
    )
    out, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    runs = json.loads(out.splitlines()[-1])["runs"]
    assert [run["num_clients"] for run in runs] == [1, 4]
    assert [run["output_tokens"] for run in runs] == [32, 32]
    assert runs[1]["output_tokens_per_s"] > runs[0]["output_tokens_per_s"]
    assert "qps" not in runs[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_file(
    url: str, tmp_path: pathlib.Path, number: signal.Signals
) -> None:
    program = bench(f"--url={url}", "--qps=0.1", f"--output={tmp_path / 'out'}")
    assert program.stdout is not None
    assert program.stdout.readline().startswith("starting server at")
    time.sleep(0.5)
    program.send_signal(number)
    _, err = program.communicate(timeout=30)
    assert program.returncode in (1, 130)
    assert "Traceback" not in err
    assert not list((tmp_path / "out").iterdir())


WRONG_VALUES = {
    "--num_requests=1001": "num_requests=1001, but",
    "--load=fast": "load=fast is not numbers",
    "--load=1 --qps=2": "give one of load, qps and rate_scale",
    "--load=-1": "loads: -1.0 is not in 0..1000000",
    "--url=http://x --policies=edf": "leave out --policies",
    "--url=http://x --launch --bucket_strategies=exact --kv_cache_bytes=9 --seed=1": (
        "url=http://x is a running server with its own settings: leave out "
        "--launch, --bucket_strategies, --kv_cache_bytes"
    ),
    "--url=http://x --noenable_overlap": "leave out --enable_overlap",
    "--api=chat": "engines in this process take no HTTP requests",
    "--length_estimator=mean": "no length to guess: leave out --length_estimator",
    "--declared_max_tokens=9": "declared_max_tokens=9 would do nothing without",
    "--mode=closed --noignore_eos": "replays no trace: leave out --ignore_eos",
    "--profile_host --enable_overlap": "profile_host needs noenable_overlap",
    "--mode=closed --load=0.9 --trace=t --length_scale=2": (
        "mode=closed replays no trace: leave out --trace, --length_scale, --load"
    ),
    "--mode=closed --qps=1": "leave out --qps",
    "--mode=closed --rate_scale=1": "leave out --rate_scale",
    "--mode=closed --service_classes=c": "leave out --service_classes",
    "--clients=1 --prompt_tokens=9 --output_tokens=9": (
        "leave out --clients, --prompt_tokens, --output_tokens"
    ),
    "--qps=1 --capacity_s=2": "a rate in requests needs no capacity",
    "--trace=/none.csv": "/none.csv",
    "--compare=/none.json": "/none.json",
    "--bucket_strategies=fitted": (
        "bucket strategy 'fitted' needs a bucket file, --buckets=FILE. To write one: "
        "jserve --step_log=steps.jsonl, with traffic, then jserve-fit-buckets"
    ),
    "--bucket_strategies=linear:gap=4": "has no option 'gap=4'",
    "--bucket_strategies=cubes": "bucket strategy 'cubes' is unknown",
    "--buckets=b.json --bucket_strategies=pow2": "buckets=b.json is for bucket",
    "--policies=fcfs,edf --step_log=s.jsonl": "one file for 2 engines",
    "--url=http://x --measure_warm_start": "leave out --measure_warm_start",
    "--max_num_seqs=0": "max_num_seqs=0 is not in 1..4096",
    "--url=http://x --extra_body=[]": "extra_body=[] is not a JSON object",
    "--mode=closed --clients=0": "clients=0 is not in 1..4096",
    "--url=http://127.0.0.1:9 --start_timeout_s=1": "is not warm after 1 s",
}


def test_wrong_values_are_refused_by_name() -> None:
    code = (
        "import sys\n"
        "from absl import flags\n"
        "from absl.testing import flagsaver\n"
        "from jserve.program import ProgramError\n"
        "from jserve_tools import bench\n"
        "for line in sys.stdin:\n"
        "    flags.FLAGS(['jserve-bench'])\n"
        "    with flagsaver.flagsaver():\n"
        "        flags.FLAGS(['jserve-bench', *line.split()])\n"
        "        try:\n"
        "            bench.main([])\n"
        "        except ProgramError as error:\n"
        "            print('refused:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join(WRONG_VALUES),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": PATH},
    )
    assert done.returncode == 0, done.stderr
    refusals = [row for row in done.stdout.splitlines() if row.startswith("refused: ")]
    assert len(refusals) == len(WRONG_VALUES)
    for refusal, message in zip(refusals, WRONG_VALUES.values(), strict=True):
        assert message in refusal


def test_a_wrong_value_takes_one_line() -> None:
    program = bench("--num_requests=1001")
    out, err = program.communicate(timeout=30)
    assert (program.returncode, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert "num_requests=1001" in err


def test_help_lists_every_flag_without_jax() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['jserve-bench', '--help']\n"
        "from jserve_tools import bench\n"
        "try:\n"
        "    bench.run()\n"
        "finally:\n"
        "    assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": PATH},
    )
    for flag in ("--trace", "--load", "profile_host", "--kv_cache_bytes", "--qps"):
        assert flag in done.stdout
    assert "AssertionError" not in done.stderr
