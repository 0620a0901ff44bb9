"""Trains predictors on a samples file, and says how well they do.

`--kind=step`, the default, predicts steps. Two models are fitted to the steps marked
for training: SlidingServe's linear model, and a small network that says by what factor
the linear model is wrong, with a median and a 95th percentile. Both are judged, beside
the server's start-up table, on steps held out.

`--kind=request` predicts whole requests: a prefill and a decode step, each bilinear in
batch size and length, for policies that look ahead.

  jserve-train-predictor --samples=out/profile/samples.npz --output=out/predictor
  jserve --predictor=out/predictor                  serves with it
  jserve-train-predictor --kind=request --samples=out/profile/samples.npz
  jserve --request_latency=out/request_latency/request_latency.json

Writes a checkpoint, or request_latency.json, with report.json and report.png (which
needs the extra `report`) to --output, and prints tables for people; the last line of
stdout is one JSON document.
"""

import dataclasses
import importlib.util
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jserve.config_flags import define_config_flags
from jserve.program import ProgramError, run_program
from jserve_tools.documents import commit, plain, write_report, write_whole
from jserve_tools.progress import Progress
from jserve_tools.samples import TEST, TRAIN, VALIDATION, Samples, read_samples
from jserve_tools.training_config import TrainingConfig

if TYPE_CHECKING:
    from jserve.predictor_checkpoint import PredictorFacts

_read_config = define_config_flags(TrainingConfig, group="Training")
_PARTS = {"training": TRAIN, "validation": VALIDATION, "test": TEST}


def main(argv: Sequence[str]) -> None:
    """Trains what the flags describe."""
    del argv  # the flags say it all
    try:
        config = _read_config()
        samples = read_samples(config.samples)
        config.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=config.folder):
            pass  # it can be written, which is better known before the work
        _train(config, samples)
    except (ValueError, OSError) as error:
        raise ProgramError(str(error)) from error


def _train(config: TrainingConfig, samples: Samples) -> None:
    from jserve.predictor_checkpoint import PredictorFacts  # JAX takes a second

    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax tells of every file
    try:
        measured_with = PredictorFacts(**samples.facts["predictor"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"samples={str(config.samples)!r} do not say what they were measured with: "
            f"{error}"
        ) from None
    if config.kind == "request":
        from jserve_tools.request_training import publish_requests

        publish_requests(samples, config.folder, measured_with)
    else:
        _train_steps(config, samples, measured_with)


def _train_steps(
    config: TrainingConfig, samples: Samples, measured_with: "PredictorFacts"
) -> None:
    """Trains, judges, writes checkpoint, report and picture, and prints both forms."""
    import jax
    import optax

    from jserve.predictor_checkpoint import save_checkpoint
    from jserve_sched.buckets import table_from_json
    from jserve_sched.mlp_predictor import MlpPredictor
    from jserve_tools import predictor_report, predictor_training

    test = samples.steps_in(TEST)
    if not test.size:
        raise ValueError("the samples hold no step for the test")
    facts, states = samples.facts, config.folder / "training"
    if not config.resume:
        shutil.rmtree(states, ignore_errors=True)
    training = predictor_training.Training(samples, config)
    num_epochs = 0

    def on_epoch(state: predictor_training.Progress) -> None:
        nonlocal num_epochs
        num_epochs = int(state.epoch)

    with Progress().doing(
        "training", lambda: f"{num_epochs} of at most {config.max_epochs} epochs"
    ):
        state = training.run(states, on_epoch)
    weights = training.weights(state)
    network = MlpPredictor(weights)
    table = predictor_report.learned_table(
        samples,
        table_from_json(json.dumps(facts["buckets"])),
        max_pages_per_row=-(-int(facts["max_model_len"]) // measured_with.page_size),
    )
    judged: dict[str, Any] = {
        "matrix": samples.features[test],
        "duration_s": samples.duration_s[:, test],
    }
    predicted_s = {
        name: predictor.predict(judged["matrix"])
        for name, predictor in (
            ("linear", weights.linear),
            ("mlp", network),
            ("table", table),
        )
    }
    upper_s = network.predict_upper(judged["matrix"])
    held_out = predictor_report.judge(predicted_s, {"mlp": upper_s}, **judged)
    verdict = predictor_report.verdict(held_out)
    report = plain(
        {
            "schema_version": 1,
            "commit": commit(),
            "device": measured_with.device_kind,
            "jax": jax.__version__,
            "optax": optax.__version__,
            "command": ["jserve-train-predictor", *sys.argv[1:]],
            "samples": {
                name: facts[name]
                for name in ("command", "model", "num_rounds", "repeat_spread")
                if name in facts
            },
            "num_steps": {
                name: samples.steps_in(part).size for name, part in _PARTS.items()
            },
            "training": {
                **config.network,
                "num_epochs": state.epoch,
                "best_epoch": state.best_epoch,
            },
            "linear": {
                "coefficients": weights.linear.coefficients.tolist(),
                "has_expert": weights.linear.has_expert.tolist(),
            },
            "held_out": held_out,
            "verdict": verdict,
        }
    )
    own_report = {"held_out": report["held_out"]["all"]}
    save_checkpoint(
        config.folder, weights, dataclasses.replace(measured_with, report=own_report)
    )
    picture = "none; pip install 'jserve[report]' draws one"
    if importlib.util.find_spec("altair") and importlib.util.find_spec("vl_convert"):
        from jserve_tools.predictor_plots import predictor_png

        title = (
            f"Step time on {measured_with.device_kind}, model "
            f"{facts.get('model', '?')}: {test.size} held-out steps, "
            f"{len(samples.duration_s)} rounds"
        )
        png = predictor_png(predicted_s, upper_s, **judged, title=title)
        write_whole(config.folder / "report.png", png)
        picture = str(config.folder / "report.png")
    write_report(config.folder, report)
    shutil.rmtree(states, ignore_errors=True)  # it is finished
    print(f"\n{predictor_report.errors_table(held_out)}\n\n{verdict}")
    print(f"\ncheckpoint: {config.folder}\npicture: {picture}")
    print(json.dumps(report, separators=(",", ":")), flush=True)


def run() -> None:
    """The console script."""
    run_program(sys.modules[__name__])


if __name__ == "__main__":
    run()
