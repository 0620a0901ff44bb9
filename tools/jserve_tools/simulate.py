"""Serves a load in virtual time, with the server's scheduler, on a simulated GPU.

The machine is a cost model, which serves minutes of load within seconds. Every policy
gets the same requests. Runs are made at given rates, or each policy's goodput is
searched: the highest rate at which at most 1 % of the requests violate their SLO.

  jserve-simulate --policies=fcfs,sliding --workload=mixed_v1 --qps=2,3
  jserve-simulate --policies=edf,sliding --goodput --num_seeds=3 --num_processes=2
  jserve-simulate --policies=sliding,sliding:published=on --bucket_strategies=none
  jserve-simulate --cost_model=table:samples.npz --trace=my.csv
  jserve-simulate --policies=ontime --num_instances=4 --router=slo --qps=20

Prints tables and, unless stdout is a terminal, one JSON document as the last line. The
same numbers go to report.json in --output, with a page in report.html. An interrupted
sweep continues where it stopped.
"""

import logging
import sys
from collections.abc import Sequence

from absl import flags

from jserve.flags import define_config_flags
from jserve.program import ProgramError, run_program
from jserve_tools.reporting.config import ReportConfig
from jserve_tools.simulating.config import (
    LoadConfig,
    MachineConfig,
    SimulateConfig,
    SweepConfig,
)

_read_load = define_config_flags(LoadConfig, group="Load")
_read_machine = define_config_flags(MachineConfig, group="Machine")
_read_sweep = define_config_flags(SweepConfig, group="Runs")
_read_report = define_config_flags(ReportConfig, group="Report")
flags.FLAGS.set_default("output", "out/simulate")


def main(argv: Sequence[str]) -> None:
    """Runs the simulations that the flags describe."""
    del argv  # the flags say it all
    logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax notes every file
    try:
        config = SimulateConfig(
            load=_read_load(),
            machine=_read_machine(),
            sweep=_read_sweep(),
            report=_read_report(),
        )
        # The rest is imported here, so that --help and mistakes are quick.
        from jserve_tools.simulating.sweep import simulate_sweep

        simulate_sweep(config, ["jserve-simulate", *sys.argv[1:]])
    except (ValueError, OSError, RuntimeError) as error:
        raise ProgramError(str(error)) from error


def run() -> None:
    """Entry point of the command `jserve-simulate`."""
    run_program(sys.modules[__name__])


if __name__ == "__main__":
    run()
