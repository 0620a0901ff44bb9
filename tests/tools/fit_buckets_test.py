import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from jserve_sched.bucket_strategies import Explicit
from jserve_sched.buckets import table_from_json
from jserve_sched.step_demand import demand_from_json

SMALL = (
    *("--workload=sharegpt", "--qps=6", "--num_requests=60", "--max_model_len=4096"),
    *("--max_num_seqs=16", "--max_num_batched_tokens=272"),
)


def fit_buckets(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "jserve_tools.fit_buckets", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_simulated_load_gives_a_file_that_a_server_loads(
    tmp_path: pathlib.Path,
) -> None:
    output = tmp_path / "folder" / "buckets.json"
    program = fit_buckets(*SMALL, "--max_programs=16", f"--output={output}")
    assert program.returncode == 0, program.stderr
    text = output.read_text()
    table = table_from_json(text)
    # Loaded as a server loads it, with the same limits.
    served = Explicit(row_edges=table.row_edges, block_edges=table.block_edges).table(
        max_num_seqs=16, max_num_batched_tokens=272, block_tokens=32
    )
    assert served.num_programs <= 16
    file: dict[str, Any] = json.loads(text)
    demand = demand_from_json(json.dumps(file["demand"]))
    assert demand.rows.max() <= 16
    assert demand.last_block.max() <= 8
    fit = file["fit"]
    assert fit["source"] == "simulated"
    assert (fit["workload"], fit["qps"], fit["policy"]) == ("sharegpt", 6.0, "fcfs")
    assert fit["history"]["is_converged"]
    assert fit["command"][0] == "jserve-fit-buckets"
    report = json.loads(program.stdout.splitlines()[-1])
    assert report["row_edges"] == list(table.row_edges)
    assert report["fit"] == fit
    rows = report["comparison"]
    assert rows[0]["bucket_strategy"] == "pow2"
    assert "no change is left" in program.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give step_log, or workload or trace to simulate one"),
        (("--step_log=steps.jsonl", "--qps=2"), "qps cannot be given with step_log"),
        (("--step_log={folder}/none",), "{folder}/none"),
        (("--workload=sharegpt", "--qps=1,2"), "at one rate, not qps=[1.0, 2.0]"),
        (("--workload=sharegpt", "--policy=nobody"), "'nobody' is unknown"),
        (
            (*SMALL, "--num_requests=2", "--max_programs=3"),
            "steps are too few to fit buckets to: at least 200",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "buckets.json"
    given = [one.format(folder=tmp_path) for one in arguments]
    program = fit_buckets(*given, f"--output={output}")
    assert program.returncode == 1
    assert message.format(folder=tmp_path) in program.stderr
    assert len(program.stderr.splitlines()) == 1
    assert not output.exists()
