"""The examples do what their first lines say."""

import json
import os
import pathlib
import runpy
import shutil
import subprocess
import sys

import pytest

from jserve_sched.policies.registry import make_policy
from jserve_sched.requests.slo import Slo
from tests import ROOT
from tests.fake_server import serve_fake
from tests.fakes import make_request
from tests.programs import SOURCES
from tests.step_costs import METRONOME_TABLE, Curve, make_view

EXAMPLES = ROOT / "examples"


def test_the_client_asks_with_an_slo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_fake() as served:
        monkeypatch.setattr(sys, "argv", ["client.py", f"{served.url}/v1"])
        runpy.run_path(str(EXAMPLES / "client.py"))
        (request,) = served.loop.seen
    assert request.slo == Slo(ttft_s=0.5, tbt_s=0.05)
    assert capsys.readouterr().out == "hello he\n"


def test_a_policy_in_the_current_folder_is_simulated_in_several_processes(
    tmp_path: pathlib.Path,
) -> None:
    shutil.copy(EXAMPLES / "lifo_policy.py", tmp_path)
    policies = "fcfs,lifo_policy.LastComeFirstServed"
    # As an installed program, which does not look for modules in the current folder.
    code = "from jserve_tools.simulate import run; run()"
    program = subprocess.run(
        [
            *(sys.executable, "-P", "-c", f"if __name__ == '__main__': {code}"),
            *(f"--policies={policies}", "--num_processes=2", "--num_requests=60"),
            *("--one_shot", "--nohtml", "--output=out"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": SOURCES},
        timeout=60,
    )
    assert program.returncode == 0, program.stderr
    runs = json.loads((tmp_path / "out" / "report.json").read_text())["runs"]
    assert [run["policy"] for run in runs] == policies.split(",")
    assert runs[0]["num_steps"] != runs[1]["num_steps"]


def test_the_policy_takes_the_newest_first() -> None:
    policy = make_policy("examples.lifo_policy.LastComeFirstServed")
    waiting = [make_request(8, 2, arrival_s=arrival_s) for arrival_s in (3.0, 1.0, 2.0)]
    plan = policy.plan(make_view(METRONOME_TABLE, Curve(abs), waiting=waiting))
    assert plan is not None
    assert [row.request.arrival_s for row in plan.chunks] == [3.0, 2.0]
