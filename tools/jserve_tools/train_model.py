"""Trains the model that `--model=tiny` serves, on Python's standard library.

The text is that of the running Python, split by file: what it was never trained on
judges it. On two cores a step takes about 2 seconds.

  jserve-train-model --output=out/model

Writes an Orbax checkpoint in bfloat16 and report.json, with the curve of losses, to
--output; the last line of stdout is one JSON document. Ctrl-C keeps an older checkpoint
as it is.
"""

import json
import platform
import sys
from collections.abc import Sequence

from absl import logging

from jserve.config import check_writable
from jserve.flags import define_config_flags
from jserve.program import ProgramError, run_program
from jserve.progress import Progress, timed_lines
from jserve_tools.reporting.documents import commit, plain, write_report
from jserve_tools.reporting.tables import render
from jserve_tools.training.config import ByteModelConfig
from jserve_tools.training.library_text import library_files, read_text

_read_config = define_config_flags(ByteModelConfig, group="Training")


def main(argv: Sequence[str]) -> None:
    """Trains the model that the flags describe."""
    del argv  # the flags say it all
    try:
        config = _read_config()
        check_writable("output", config.output)
        config.output.mkdir(parents=True, exist_ok=True)
        _train(config)
    except (ValueError, OSError) as error:
        raise ProgramError(str(error)) from error


def _train(config: ByteModelConfig) -> None:
    """Trains and judges; writes checkpoint and report; prints the losses."""
    import jax  # here, since it takes a second and --help does not need it
    import optax

    from jserve_models.config import NAMED
    from jserve_tools.training.byte_model import ByteModel, halved

    # Train, and judge what will be saved by files that it has not seen.
    logging.set_verbosity(logging.WARNING)  # Orbax logs every file
    num_steps = 0

    def on_step(step: int) -> None:
        nonlocal num_steps
        num_steps = step

    progress = Progress(timed_lines())
    with progress.doing("reading the standard library"):
        files = library_files(is_held_out=False)
        held_out_files = library_files(is_held_out=True)
        text, held_out = read_text(files), read_text(held_out_files)
    model = ByteModel(NAMED["tiny"], config, text)
    with progress.doing("training, steps", config.num_steps, lambda: num_steps):
        state, curve = model.run(held_out, on_step)
    leaves = halved(state.leaves)
    with progress.doing("judging"):
        bits = model.judge([leaf.astype("float32") for leaf in leaves], held_out)
    report = plain(
        {
            "schema_version": 1,
            "commit": commit(),
            "command": ["jserve-train-model", *sys.argv[1:]],
            "settings": config,
            "jax": jax.__version__,
            "optax": optax.__version__,
            "text": {
                "python": platform.python_version(),
                "num_files": len(files),
                "num_tokens": text.sources.tokens.size + text.chats.tokens.size,
                "num_held_out_files": len(held_out_files),
                "num_held_out_tokens": held_out.sources.tokens.size,
            },
            "bits_per_byte": bits,
            "curve": curve,
        }
    )

    # Write.
    model.save(config.output / "checkpoint", leaves)
    write_report(config.output, report)
    rows = [[name, f"{value:.3f}"] for name, value in bits.items()]
    print(f"\n{render([['bytes before', 'bits per byte, held out'], *rows])}\n")
    print(f"checkpoint: {config.output / 'checkpoint'}")
    print(json.dumps(report, separators=(",", ":")), flush=True)


def run() -> None:
    """Entry point of the command `jserve-train-model`."""
    run_program(sys.modules[__name__])


if __name__ == "__main__":
    run()
