"""The programs as people run them, in processes of their own.

They define flags, so no test imports them.
"""

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from jserve.timing.checkpoint import load_checkpoint
from jserve_sched.timing.mlp import MlpPredictor
from jserve_tools.training.samples import TEST, read_samples
from tests.programs import finish, start

SMALL = (
    "--model=toy",
    "--max_model_len=512",
    "--max_num_seqs=2",
    "--max_num_batched_tokens=34",
    "--kv_cache_bytes=1000000",
    "--compile_cache_dir=",
    "--num_random_shapes=12",
)


def run(program: str, *arguments: str) -> tuple[str, dict[str, Any]]:
    return finish(start("-m", f"jserve_tools.{program}", *arguments))


def test_steps_are_measured_and_a_predictor_is_trained(tmp_path: pathlib.Path) -> None:
    path, folder = tmp_path / "samples.npz", tmp_path / "predictor"
    out, profile = run("profile_steps", *SMALL, "--rounds=3", f"--output={path}")
    samples = read_samples(path)
    assert samples.duration_s.shape == (3, profile["num_steps"])
    assert profile["num_compiles_after_warmup"] == 0
    assert "repeat spread" in out
    assert samples.facts["command"][0] == "jserve-profile"

    flagfile = tmp_path / "train.flags"
    flagfile.write_text(f"--samples={path}\n--output={folder}\n--hidden=8\n")
    train = (f"--flagfile={flagfile}", "--max_epochs=4")
    out, report = run("train_predictor", *train)
    assert "single: median APE" in out
    assert json.loads((folder / "report.json").read_text()) == report
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    weights, facts = load_checkpoint(folder)
    assert facts.platform == "cpu"
    steps = samples.steps_in(TEST)
    predicted_s = MlpPredictor(weights).predict(samples.features[steps])
    error_ms = np.abs(predicted_s - np.median(samples.duration_s[:, steps], 0)) * 1e3
    found = report["held_out"]["all"]["predictors"]["mlp"]["against_median"]
    assert found["mae_ms"] == pytest.approx(error_ms.mean(), rel=1e-3)


REFUSED = {
    "profile_steps": {
        "--max_model_len=99999999": "max_model_len=99999999 is not in",
        "--model=nothing": "nothing",
        "--kv_cache_bytes=5": "kv_cache_bytes=5 holds no KV page",
        "--rounds=0": "rounds=0 is not in 1..10000",
        "--output=/dev/null/samples.npz": "/dev/null",
    },
    "train_model": {
        "--batch_tokens=512": "batch_tokens=512 is not in 1536..",
        "--num_long_steps=251": "num_long_steps=251 is not in 0..250",
        "--output=/dev/null/model": "/dev/null",
    },
    "train_predictor": {
        "--samples=/none.npz": "samples='/none.npz'",
        "--max_epochs=0": "max_epochs=0 is not in",
        "--hidden=": "hidden= is empty",
    },
}


@pytest.mark.parametrize("program", sorted(REFUSED))
def test_wrong_values_are_refused(program: str) -> None:
    code = f"""
from absl import flags
from absl.testing import flagsaver
from jserve.program import ProgramError
from jserve_tools import {program} as program
for line in {[*REFUSED[program]]!r}:
    flags.FLAGS(["program"])
    with flagsaver.flagsaver():
        flags.FLAGS(["program", line])
        try:
            program.main([])
        except ProgramError as error:
            print(error)
"""
    out, err = start("-c", code).communicate(timeout=240)
    for refusal, message in zip(
        out.splitlines(), REFUSED[program].values(), strict=True
    ):
        assert message in refusal, err
