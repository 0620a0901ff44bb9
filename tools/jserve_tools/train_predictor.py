"""Trains predictors on a samples file, and says how well they do.

`--kind=step`, the default, predicts steps. Two models are fitted to the steps marked
for training: SlidingServe's linear model, and a small network that says by what factor
the linear model is wrong, with a median and a 95th percentile. Both are judged, beside
the server's start-up table, on steps held out.

`--kind=request` predicts whole requests: a prefill and a decode step, each bilinear in
batch size and length, for policies that look ahead.

  jserve-train-predictor --samples=out/profile/samples.npz --output=out/predictor
  jserve-train-predictor --flagfile=train.flags --resume
  jserve --predictor=out/predictor                  serves with it
  jserve-train-predictor --kind=request --samples=out/profile/samples.npz
  jserve --request_latency=out/request_latency/request_latency.json

Writes a checkpoint with report.json and report.png, or request_latency.json, to
--output, and prints tables for people; the last line of stdout is one JSON document.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import optax
import tqdm
from absl import flags, logging

from jserve.predictor_checkpoint import PredictorFacts, save_checkpoint
from jserve.program import ProgramError, run_program
from jserve_sched.buckets import BucketTable, table_from_json
from jserve_sched.mlp_predictor import MlpPredictor, MlpWeights
from jserve_tools.documents import commit, plain, write_whole
from jserve_tools.predictor_plots import HeldOut, draw_predictor
from jserve_tools.predictor_report import (
    errors_table,
    evaluate,
    learned_table,
    verdicts,
    verdicts_table,
)
from jserve_tools.predictor_training import Progress, Training, TrainingConfig
from jserve_tools.request_training import publish_requests
from jserve_tools.samples import TEST, TRAIN, VALIDATION, Samples, read_samples
from jserve_tools.training_state import TrainingState

_DEFAULT = TrainingConfig()
_SAMPLES = flags.DEFINE_string(
    "samples", "out/profile/samples.npz", "The samples file, from jserve-profile."
)
_KIND = flags.DEFINE_enum(
    "kind", "step", ("step", "request"), "What is predicted: steps or whole requests."
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Folder for what was learned, report.json and report.png; by default "
    "out/predictor, or out/request_latency for --kind=request.",
)
_RESUME = flags.DEFINE_bool(
    "resume",
    False,
    "Go on from the state that --output holds; the result is that of a training never "
    "interrupted.",
)
_SAVE_EVERY = flags.DEFINE_integer(
    "save_every", 50, "Epochs between two states saved.", lower_bound=1
)
_HIDDEN = flags.DEFINE_list(
    "hidden", [str(units) for units in _DEFAULT.hidden], "Units of each hidden layer."
)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate",
    _DEFAULT.learning_rate,
    "Adam's at the start; it falls to 0 along a cosine over --max_epochs.",
)
_WEIGHT_DECAY = flags.DEFINE_float(
    "weight_decay", _DEFAULT.weight_decay, "Of the kernels, as in AdamW."
)
_MAX_EPOCHS = flags.DEFINE_integer(
    "max_epochs", _DEFAULT.max_epochs, "Most epochs, of 50 optimiser steps each."
)
_PATIENCE = flags.DEFINE_integer(
    "patience",
    _DEFAULT.patience,
    "Epochs without a better validation loss that end the training.",
)
_MIN_EXPERT_SAMPLES = flags.DEFINE_integer(
    "min_expert_samples",
    _DEFAULT.min_expert_samples,
    "Training steps of a scenario that give it a linear model of its own.",
)
_SEED = flags.DEFINE_integer(
    "seed",
    _DEFAULT.seed,
    "Draws the first weights.",
    lower_bound=0,
    upper_bound=2**31 - 1,
)


# What only a training in epochs reads.
_STEP_FLAGS = (
    *("resume", "save_every", "hidden", "learning_rate", "weight_decay", "max_epochs"),
    *("patience", "min_expert_samples", "seed"),
)


def _check_kind() -> None:
    idle = [f"--{name}" for name in _STEP_FLAGS if flags.FLAGS[name].present]
    if _KIND.value == "request" and idle:
        raise ValueError(
            f"kind=request is one fit without epochs: leave out {', '.join(idle)}"
        )


def _output() -> pathlib.Path:
    default = "out/predictor" if _KIND.value == "step" else "out/request_latency"
    return pathlib.Path(_OUTPUT.value or default).expanduser()


def _config() -> TrainingConfig:
    try:
        hidden = tuple(int(units) for units in _HIDDEN.value)
    except ValueError:
        raise ValueError(f"hidden={','.join(_HIDDEN.value)} is not integers") from None
    return TrainingConfig(
        hidden=hidden,
        learning_rate=_LEARNING_RATE.value,
        weight_decay=_WEIGHT_DECAY.value,
        max_epochs=_MAX_EPOCHS.value,
        patience=_PATIENCE.value,
        min_expert_samples=_MIN_EXPERT_SAMPLES.value,
        seed=_SEED.value,
    )


def _train(training: Training, state: TrainingState, resumes: bool) -> Progress:
    """Runs a training to its end, saving its state now and then."""
    progress = training.start()
    if resumes:
        progress = state.restore(progress) or progress
    else:
        state.clear()
    done = int(progress.epoch)
    with tqdm.tqdm(initial=done, total=training.config.max_epochs, unit="epoch") as bar:

        def on_epoch(now: Progress) -> None:
            bar.update()
            if int(now.epoch) % _SAVE_EVERY.value == 0:
                bar.set_postfix(validation_loss=f"{float(now.best_loss):.5f}")
                state.save(now)

        progress = training.run(progress, on_epoch)
    state.save(progress)
    return progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Trained:
    """What came out.

    Attributes:
      weights: the network and the linear model under it.
      num_epochs: epochs trained.
      best_epoch: the one kept.
    """

    weights: MlpWeights
    num_epochs: int
    best_epoch: int


def _judge(
    samples: Samples, trained: _Trained, table: BucketTable, max_pages_per_row: int
) -> tuple[dict[str, Any], HeldOut]:
    """Returns the errors on the held-out steps, and what to plot of them."""
    steps = samples.steps_in(TEST)
    if not steps.size:
        raise ValueError("the samples hold no step for the test")
    matrix, duration_s = samples.features[steps], samples.duration_s[:, steps]
    network = MlpPredictor(trained.weights)
    held_out = HeldOut(
        matrix=matrix,
        duration_s=duration_s,
        linear_s=trained.weights.linear.predict(matrix),
        mlp_s=network.predict(matrix),
        upper_s=network.predict_upper(matrix),
    )
    predicted_s = {
        "linear": held_out.linear_s,
        "mlp": held_out.mlp_s,
        "table": learned_table(
            samples, table, max_pages_per_row=max_pages_per_row
        ).predict(matrix),
    }
    report = evaluate(
        predicted_s,
        {"mlp": held_out.upper_s},
        matrix=matrix,
        duration_s=duration_s,
    )
    return report, held_out


def _publish(
    samples: Samples,
    trained: _Trained,
    config: TrainingConfig,
    output: pathlib.Path,
    measured_with: PredictorFacts,
) -> None:
    """Judges, writes checkpoint, report and picture, and prints tables and JSON."""
    facts = samples.facts
    table = table_from_json(json.dumps(facts["buckets"]))
    pages = -(-int(facts["max_model_len"]) // measured_with.page_size)
    held_out_report, held_out = _judge(samples, trained, table, pages)
    found = verdicts(held_out_report)
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
                name: len(samples.steps_in(part))
                for name, part in (
                    ("training", TRAIN),
                    ("validation", VALIDATION),
                    ("test", TEST),
                )
            },
            "training": {
                **dataclasses.asdict(config),
                "num_epochs": trained.num_epochs,
                "best_epoch": trained.best_epoch,
            },
            "linear": {
                "coefficients": trained.weights.linear.coefficients.tolist(),
                "has_expert": trained.weights.linear.has_expert.tolist(),
            },
            "held_out": held_out_report,
            "targets": found,
        }
    )
    save_checkpoint(
        output,
        trained.weights,
        dataclasses.replace(
            measured_with, report={"held_out": report["held_out"]["all"]}
        ),
    )
    title = (
        f"Step time on {measured_with.device_kind}, model {facts.get('model', '?')}: "
        f"{len(held_out.matrix)} held-out steps, {len(held_out.duration_s)} rounds"
    )
    write_whole(output / "report.png", draw_predictor(held_out, title=title))
    write_whole(output / "report.json", (json.dumps(report, indent=1) + "\n").encode())
    print(f"\n{errors_table(held_out_report)}\n\n{verdicts_table(found)}")
    print(f"\ncheckpoint: {output}\nplot: {output / 'report.png'}")
    print(json.dumps(report, separators=(",", ":")), flush=True)


def _train_and_publish(
    samples: Samples,
    config: TrainingConfig,
    output: pathlib.Path,
    measured_with: PredictorFacts,
) -> None:
    training = Training(samples, config)
    state = TrainingState(output / "training", training.digest)
    progress = _train(training, state, _RESUME.value)
    trained = _Trained(
        weights=training.weights(progress),
        num_epochs=int(progress.epoch),
        best_epoch=int(progress.best_epoch),
    )
    _publish(samples, trained, config, output, measured_with)


def main(argv: Sequence[str]) -> None:
    """Trains what the flags describe."""
    del argv  # the flags say it all
    logging.set_verbosity(logging.WARNING)  # Orbax tells of every file
    output = _output()
    try:
        _check_kind()
        config = _config()
        samples = read_samples(pathlib.Path(_SAMPLES.value).expanduser())
        try:
            measured_with = PredictorFacts(**samples.facts["predictor"])
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"samples={_SAMPLES.value!r} do not say what they were measured with: "
                f"{error}"
            ) from None
        if _KIND.value == "request":
            publish_requests(samples, output, measured_with)
        else:
            _train_and_publish(samples, config, output, measured_with)
    except (ValueError, OSError) as error:
        raise ProgramError(str(error)) from error


def run() -> None:
    """The console script."""
    run_program(sys.modules[__name__])


if __name__ == "__main__":
    run()
