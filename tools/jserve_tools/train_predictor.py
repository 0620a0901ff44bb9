"""Trains predictors on a samples file, and reports their errors on held-out steps.

Fits SlidingServe's linear model and a small network that corrects it by a factor; both
are compared with the server's start-up table.

  jserve-train-predictor --samples=out/profile/samples.npz --output=out/predictor
  jserve --predictor=out/predictor                  serves with the trained network

Writes a checkpoint with report.json and report.png (which needs the extra `report`) to
--output; the last line of stdout is one JSON document.
"""

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import logging

from jserve.config import check_writable
from jserve.flags import define_config_flags
from jserve.program import ProgramError, run_program
from jserve.progress import Progress, timed_lines
from jserve_tools.reporting.documents import commit, plain, write_report, write_whole
from jserve_tools.training.config import TrainingConfig
from jserve_tools.training.samples import TEST, TRAIN, VALIDATION, Samples, read_samples

if TYPE_CHECKING:
    from jserve.timing.checkpoint import PredictorFacts
    from jserve_sched.timing.mlp import MlpWeights

_read_config = define_config_flags(TrainingConfig, group="Training")


def main(argv: Sequence[str]) -> None:
    """Trains the predictor that the flags describe."""
    del argv  # the flags say it all
    try:
        config = _read_config()
        samples = read_samples(config.samples)
        check_writable("output", config.output)
        config.output.mkdir(parents=True, exist_ok=True)
        _train_steps(config, samples, _measured_with(config, samples))
    except (ValueError, OSError) as error:
        raise ProgramError(str(error)) from error


def _measured_with(config: TrainingConfig, samples: Samples) -> "PredictorFacts":
    from jserve.timing.checkpoint import PredictorFacts  # JAX takes a second

    logging.set_verbosity(logging.WARNING)  # Orbax logs every file
    try:
        for name in ("buckets", "max_model_len"):
            samples.facts[name]
        return PredictorFacts(**samples.facts["predictor"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"samples={str(config.samples)!r} do not say what they were measured with: "
            f"{error}"
        ) from None


def _fit(
    config: TrainingConfig, samples: Samples
) -> "tuple[MlpWeights, dict[str, Any]]":
    """Returns the trained network, and the report's `training`."""
    from jserve_tools.training import mlp as predictor_training

    num_epochs = 0

    def on_epoch(state: predictor_training.Progress) -> None:
        nonlocal num_epochs
        num_epochs = int(state.epoch)

    progress = Progress(timed_lines())
    with progress.doing("training, epochs", config.max_epochs, lambda: num_epochs):
        training = predictor_training.Training(samples, config)
        state = training.run(on_epoch)
    epochs = {"num_epochs": state.epoch, "best_epoch": state.best_epoch}
    return training.weights(state), {**config.network, **epochs}


def _train_steps(
    config: TrainingConfig, samples: Samples, measured_with: "PredictorFacts"
) -> None:
    """Trains and judges; writes checkpoint, report and picture; prints the errors."""
    import jax
    import optax

    from jserve.timing.checkpoint import save_checkpoint
    from jserve_tools.training.report import errors_table, held_out_predictions, judge

    # Train, and predict the held-out steps.
    folder, facts = config.output, samples.facts
    weights, training = _fit(config, samples)
    predictions = held_out_predictions(samples, weights)
    held_out = judge(**predictions)
    parts = {"training": TRAIN, "validation": VALIDATION, "test": TEST}
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
            "num_steps": {name: samples.steps_in(parts[name]).size for name in parts},
            "training": training,
            "linear": {
                "coefficients": weights.linear.coefficients.tolist(),
                "has_expert": weights.linear.has_expert.tolist(),
            },
            "held_out": held_out,
        }
    )

    # Write.
    own_report = {"held_out": report["held_out"]["all"]}
    save_checkpoint(
        folder, weights, dataclasses.replace(measured_with, report=own_report)
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
