"""What is reproduced, at which size, and with which files."""

import dataclasses
import pathlib
from typing import Literal

from benchmarks.slidingserve import paper
from benchmarks.slidingserve.cells import BUCKETS, CONTINUOUS
from benchmarks.slidingserve.rows import TUNED_ROWS
from jserve.config import check_range

_HERE = pathlib.Path(__file__).parent
TUNING_SEED = 0

Stage = Literal["goodput", "ablation", "overload", "transient", "tune"]
Shape = Literal["continuous", "buckets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Experiments, their size, and the files of settings and results.

    Attributes:
      mode: Size of the experiments: quick has 1,000 requests in a probe and 2 seeds,
        full 3,000 and 5.
      stages: Experiments to run; or only tune, which writes the settings.
      shapes: Padding to run with: continuous has none, buckets pads to powers of two.
      workloads: Workloads to run.
      tuned_rows: Names of the rows that the stage tune tunes. [default: all]
      num_requests: Number of requests in a probe. [default: that of the mode]
      num_seeds: Number of seeds to judge by, from 1 on. [default: that of the mode]
      tune_requests: Number of requests in a probe while tuning.
      resolution: Relative distance of the rates tried for goodput.
      transient_s: Duration of the transient run, in seconds.
      num_processes: Number of processes that share the work. [default: one per CPU]
      settings: File of tuned settings.
      output: Folder for the results. [default: out/slidingserve/quick, or with
        --mode=full the folder of this program]
    """

    mode: Literal["quick", "full"] = "quick"
    stages: tuple[Stage, ...] = ("goodput", "ablation", "overload", "transient")
    shapes: tuple[Shape, ...] = (CONTINUOUS, BUCKETS)
    workloads: tuple[paper.Workload, ...] = paper.WORKLOADS
    tuned_rows: tuple[str, ...] = ()
    num_requests: int = 0
    num_seeds: int = 0
    tune_requests: int = 1000
    resolution: float = 0.02
    transient_s: float = paper.TRANSIENT_DURATION_S
    num_processes: int = 0
    settings: pathlib.Path = _HERE / "settings.json"
    output: pathlib.Path | None = None

    def __post_init__(self) -> None:
        names = [row.name for row in TUNED_ROWS]
        if not set(self.tuned_rows) <= set(names):
            raise ValueError(
                f"tuned_rows={','.join(self.tuned_rows)}: known are {names}"
            )
        if "tune" in self.stages and len(self.stages) > 1:
            raise ValueError(f"stages={','.join(self.stages)}: tune runs alone")
        for name in ("num_requests", "tune_requests"):
            if getattr(self, name):
                check_range(name, getattr(self, name), 20, 10**6)
        check_range("resolution", self.resolution, 1e-4, 1.0)

    @property
    def seeds(self) -> range:
        """Seeds of the experiments, none of which is used for tuning."""
        num_seeds = self.num_seeds or (5 if self.mode == "full" else 2)
        return range(TUNING_SEED + 1, TUNING_SEED + 1 + num_seeds)

    @property
    def probe_requests(self) -> int:
        """Number of requests in a probe or a run."""
        return self.num_requests or (3000 if self.mode == "full" else 1000)

    @property
    def folder(self) -> pathlib.Path:
        """Folder for the results."""
        return self.output or (
            _HERE if self.mode == "full" else pathlib.Path("out/slidingserve/quick")
        )
