"""Both programs as people run them, in processes of their own.

They define flags, so no test imports them.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jserve.predictor_checkpoint import load_checkpoint
from jserve_sched.mlp_predictor import MlpPredictor
from jserve_tools.samples import TEST, read_samples

ROOT = pathlib.Path(__file__).parents[2]
PATH = os.pathsep.join(str(ROOT / part) for part in (".", "models", "sched", "tools"))
SMALL = (
    "--model=toy",
    "--max_model_len=512",
    "--max_num_seqs=2",
    "--max_num_batched_tokens=34",
    "--kv_cache_bytes=1000000",
    "--compile_cache_dir=",
    "--num_random_shapes=12",
)


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"jserve_tools.{program}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": PATH},
    )


def finish(program: subprocess.Popen[str]) -> tuple[str, dict[str, object]]:
    """Returns what was printed, and its last line as JSON."""
    out, err = program.communicate(timeout=120)
    assert program.returncode == 0, err
    return out, json.loads(out.splitlines()[-1])


def test_steps_are_measured_and_a_predictor_is_trained(tmp_path: pathlib.Path) -> None:
    path, folder = tmp_path / "samples.npz", tmp_path / "predictor"
    out, profile = finish(
        start("profile_steps", *SMALL, "--rounds=3", f"--output={path}")
    )
    samples = read_samples(path)
    assert samples.duration_s.shape == (3, profile["num_steps"])
    assert profile["num_compiles_after_warmup"] == 0
    assert "repeat spread" in out
    assert samples.facts["command"][0] == "jserve-profile"

    flagfile = tmp_path / "train.flags"
    flagfile.write_text(f"--samples={path}\n--output={folder}\n--hidden=8\n")
    train = (f"--flagfile={flagfile}", "--max_epochs=4", "--save_every=2")
    out, report = finish(start("train_predictor", *train))
    assert "single: median APE" in out
    assert json.loads((folder / "report.json").read_text()) == report
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    weights, facts = load_checkpoint(folder)
    assert facts.platform == "cpu"
    steps = samples.steps_in(TEST)
    predicted_s = MlpPredictor(weights).predict(samples.features[steps])
    error_ms = np.abs(predicted_s - np.median(samples.duration_s[:, steps], 0)) * 1e3
    found = report["held_out"]["all"]["predictors"]["mlp"]["against_median"]  # type: ignore[index]
    assert found["mae_ms"] == pytest.approx(error_ms.mean(), rel=1e-3)

    _, again = finish(start("train_predictor", *train, "--resume"))
    assert again["held_out"] == report["held_out"]


def test_an_interrupted_profile_leaves_the_old_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "samples.npz"
    path.write_text("old")
    program = start("profile_steps", *SMALL, "--rounds=10000", f"--output={path}")
    assert program.stdout is not None
    while not program.stdout.readline().startswith("measuring"):
        assert program.poll() is None
    time.sleep(0.3)
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=30)
    assert program.returncode == 130
    assert "Traceback" not in err
    assert [one.name for one in tmp_path.iterdir()] == ["samples.npz"]
    assert path.read_text() == "old"


REFUSED = {
    "profile_steps": {
        "--max_model_len=99999999": "max_model_len=99999999 is not in",
        "--model=nothing": "nothing",
        "--kv_cache_bytes=5": "kv_cache_bytes=5 holds no KV page",
    },
    "train_predictor": {
        "--samples=/none.npz": "samples='/none.npz'",
        "--hidden=8,many": "hidden=8,many is not integers",
        "--learning_rate=0": "learning_rate=0.0 is not above 0",
        "--patience=0": "patience=0 is not above 0",
        "--kind=request --hidden=8 --resume": "leave out --resume, --hidden",
    },
}
FLAGS = {
    "profile_steps": ("--rounds", "--max_s", "--num_random_shapes", "--page_size"),
    "train_predictor": (
        "--samples",
        "--kind",
        "resume",
        "--hidden",
        "--patience",
        "--seed",
    ),
}


@pytest.mark.parametrize("program", sorted(REFUSED))
def test_wrong_values_are_refused_and_help_lists_the_flags(program: str) -> None:
    code = (
        "import sys\n"
        "from absl import flags\n"
        "from absl.testing import flagsaver\n"
        "from jserve.program import ProgramError\n"
        f"from jserve_tools import {program} as program\n"
        "for line in sys.stdin:\n"
        "    flags.FLAGS(['program'])\n"
        "    with flagsaver.flagsaver():\n"
        "        flags.FLAGS(['program', *line.split()])\n"
        "        try:\n"
        "            program.main([])\n"
        "        except ProgramError as error:\n"
        "            print('refused:', error)\n"
        "sys.argv = ['program', '--help']\n"
        "program.run()\n"
    )
    wrong = REFUSED[program]
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join(wrong),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": PATH},
    )
    assert done.returncode == 0, done.stderr
    refusals = [row for row in done.stdout.splitlines() if row.startswith("refused: ")]
    assert len(refusals) == len(wrong)
    for refusal, message in zip(refusals, wrong.values(), strict=True):
        assert message in refusal
    for flag in FLAGS[program]:
        assert flag in done.stdout
