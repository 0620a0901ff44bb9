"""Fits the buckets that a server compiles to the steps it ran; writes a bucket file.

The fitted edges have the least expected step time, padding included, of all that need
at most --max_programs programs.

  jserve --step_log=steps.jsonl                           records
  jserve-fit-buckets --step_log=steps.jsonl               fits
  jserve --bucket_strategy=fitted --buckets=buckets.json  serves with the fitted buckets

A log written by jserve-simulate needs --cost_model. The last line of stdout is one JSON
document.
"""

import json
import sys
from collections.abc import Sequence

from jserve.flags import define_config_flags
from jserve.program import ProgramError, run_program
from jserve_tools.fitting.config import FitConfig

_READ_CONFIG = define_config_flags(FitConfig, group="Fit")


def main(argv: Sequence[str]) -> None:
    """Makes the fit that the flags describe."""
    del argv  # the flags say it all
    try:
        config = _READ_CONFIG()
        # Imported here, so that --help and a refusal are quick.
        from jserve_tools.fitting.recorded_fits import fit
        from jserve_tools.reporting.documents import commit, plain, write_whole

        file = fit(config)
        facts = {"commit": commit(), "command": ["jserve-fit-buckets", *sys.argv[1:]]}
        file["fit"] = plain(file["fit"] | facts)
        write_whole(config.output, (json.dumps(file) + "\n").encode())
    except (ValueError, OSError, RuntimeError) as error:
        raise ProgramError(str(error)) from error
    print(f"row edges    {', '.join(map(str, file['row_edges']))}")
    print(f"block edges  {', '.join(map(str, file['block_edges']))}")
    print(f"programs     {file['fit']['num_programs']}\n\nbucket file: {config.output}")
    report = {"schema_version": 1, **file, "output": str(config.output)}
    print(json.dumps(report, separators=(",", ":")), flush=True)


def run() -> None:
    """Entry point of the command `jserve-fit-buckets`."""
    run_program(sys.modules[__name__])


if __name__ == "__main__":
    run()
