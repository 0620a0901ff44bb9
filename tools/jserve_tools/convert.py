"""Writes a model's weights in another form: safetensors, or an Orbax checkpoint.

  jserve-convert --model=ORG/NAME --format=orbax --output=out/model
  jserve-convert --model=model.gguf --output=out/model

The model is a folder, a GGUF file, ORG/NAME of the hub, or "tiny". --output becomes a
folder that `jserve --model` serves on any number of devices; what is quantised becomes
floats. The weights must fit into memory.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import flags, logging

from jserve.config import check_writable
from jserve.program import ProgramError, run_program

_MODEL = flags.DEFINE_string("model", None, "Model to convert.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
_FORMAT = flags.DEFINE_enum(
    "format", "safetensors", ["safetensors", "orbax"], "Form of the weights."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "bfloat16", ["bfloat16", "float16", "float32"], "Type of the weights."
)


def main(argv: Sequence[str]) -> None:
    """Converts the model that the flags name."""
    del argv
    from jserve_tools.training.conversion import convert  # imports JAX

    logging.set_verbosity(logging.WARNING)  # Orbax logs every file
    try:
        output = pathlib.Path(_OUTPUT.value).expanduser()
        check_writable("output", output)
        output.mkdir(parents=True, exist_ok=True)
        convert(_MODEL.value, output, _FORMAT.value, _DTYPE.value)
    except (ValueError, OSError) as error:
        raise ProgramError(str(error)) from error
    print(output)


def run() -> None:
    """Entry point of the command `jserve-convert`."""
    run_program(sys.modules[__name__])


if __name__ == "__main__":
    run()
