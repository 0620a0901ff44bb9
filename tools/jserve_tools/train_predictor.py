"""Trains a predictor on measured steps, and reports its errors on held-out ones.

It is the network that --predictor=auto trains on a server's own steps. It is compared
with the server's start-up table and, on samples, with SlidingServe's linear model.

  jserve-train-predictor --samples=out/profile/samples.npz --output=out/predictor
  jserve-train-predictor --step_log=out/steps.jsonl --output=out/predictor
  jserve --predictor=out/predictor                  serves with the trained network

Writes a checkpoint with report.json and report.png (which needs the extra `report`) to
--output; the last line of stdout is one JSON document.
"""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from jserve.config import check_writable
from jserve.flags import define_config_flags
from jserve.program import ProgramError, run_program
from jserve.progress import Progress, timed_lines
from jserve_tools.fitting.step_logs import read_step_logs
from jserve_tools.reporting.documents import commit, plain, write_report, write_whole
from jserve_tools.training.config import TrainingConfig
from jserve_tools.training.samples import Samples, read_samples, recorded_samples

if TYPE_CHECKING:
    from jserve.timing.checkpoint import PredictorFacts

_read_config = define_config_flags(TrainingConfig, group="Training")


def main(argv: Sequence[str]) -> None:
    """Trains the predictor that the flags describe."""
    del argv  # the flags say it all
    try:
        config = _read_config()
        samples = _samples(config)
        check_writable("output", config.output)
        config.output.mkdir(parents=True, exist_ok=True)
        _train_steps(config, samples, _measured_with(config, samples))
    except (ValueError, OSError) as error:
        raise ProgramError(str(error)) from error


def _samples(config: TrainingConfig) -> Samples:
    if config.step_log is None:
        return read_samples(config.samples)
    logged = read_step_logs([config.step_log])
    steps, rng = [step for _, step in logged], np.random.default_rng(config.seed)
    return recorded_samples(logged[-1][0], steps, rng)


def _measured_with(config: TrainingConfig, samples: Samples) -> "PredictorFacts":
    from jserve.timing.checkpoint import PredictorFacts  # JAX takes a second

    logging.set_verbosity(logging.WARNING)  # Orbax logs every file
    try:
        return PredictorFacts(**samples.facts["predictor"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{str(config.step_log or config.samples)!r} does not say what it was "
            f"measured with: {error}"
        ) from None


def _train_steps(
    config: TrainingConfig, samples: Samples, measured_with: "PredictorFacts"
) -> None:
    """Trains and judges; writes checkpoint, report and picture; prints the errors."""
    import jax
    import optax

    from jserve.timing.checkpoint import save_checkpoint
    from jserve.timing.training import train_network
    from jserve_tools.training.report import errors_table, held_out_predictions, judge

    # Train, and predict the held-out steps.
    folder, facts = config.output, samples.facts
    with Progress(timed_lines()).doing("training the network"):
        weights, epochs = train_network(*samples.for_training(), **config.network)
    predictions = held_out_predictions(samples, weights)
    held_out = judge(**predictions)
    names = ("training", "validation", "test")
    report = plain(
        {
            "schema_version": 2,
            "commit": commit(),
            "device": measured_with.device_kind,
            "jax": jax.__version__,
            "optax": optax.__version__,
            "command": ["jserve-train-predictor", *sys.argv[1:]],
            "samples": {
                name: facts.get(name)
                for name in ("command", "model", "num_rounds", "repeat_spread")
            },
            "num_steps": {
                name: samples.steps_in(part).size for part, name in enumerate(names)
            },
            "training": {**config.network, **epochs},
            "physics_s": weights.cost_s.tolist(),
            "held_out": held_out,
        }
    )

    # Write.
    own_report = {"held_out": report["held_out"]["all"]}
    save_checkpoint(
        folder, dataclasses.replace(measured_with, report=own_report), weights
    )
    picture = "none; pip install 'jserve[report]' draws one"
    if all(map(importlib.util.find_spec, ("altair", "vl_convert"))):
        from jserve_tools.training.plots import predictor_png

        title = f"Step time on {measured_with.device_kind}, model {facts.get('model')}"
        title += f": {held_out['all']['num_steps']} held-out steps"
        picture = str(folder / "report.png")
        write_whole(folder / "report.png", predictor_png(predictions, title=title))
    write_report(folder, report)
    print(f"\n{errors_table(held_out)}\n\ncheckpoint: {folder}\npicture: {picture}")
    print(json.dumps(report, separators=(",", ":")), flush=True)


def run() -> None:
    """Entry point of the command `jserve-train-predictor`."""
    run_program(sys.modules[__name__])


if __name__ == "__main__":
    run()
