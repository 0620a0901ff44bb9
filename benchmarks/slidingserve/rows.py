"""The rows of the comparison: each is a scheduler, with the options tuned for it.

A row names its policy, fixed options, and the options whose values are searched. The
step's token limit is searched too, for all rows that do not limit their steps
themselves. Every row is therefore compared at its best.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from benchmarks.slidingserve import paper
from benchmarks.slidingserve.cells import BUCKETS, CONTINUOUS

LIMITS_TOKENS = (160, 192, 224, 256, 320, 384, 512, 768, 1024, 2176)

Value = float | str

Knob = tuple[str, tuple[Value, ...]]
"""An option to tune, and the values to try."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One scheduler of the comparison.

    Attributes:
      name: Name in tables.
      policy: Policy with its fixed options.
      knobs: Options that are tuned besides the token limit.
      predictor: Predictor of step times.
      is_tuned: Whether its step limit and knobs are searched; otherwise it has full
        steps and the policy's defaults.
      shapes: Shapes (`continuous`, `buckets`) on which it is compared.
      workloads: Workloads on which it is compared.
    """

    name: str
    policy: str
    knobs: tuple[Knob, ...] = ()
    predictor: str = "oracle"
    is_tuned: bool = True
    shapes: tuple[str, ...] = (CONTINUOUS, BUCKETS)
    workloads: tuple[str, ...] = paper.WORKLOADS

    def server(
        self, shape: str, limit_tokens: int, options: Mapping[str, Value]
    ) -> dict[str, Any]:
        """Returns the fields of a cell that say how its server is set up."""
        settings = [f"{name}={value}" for name, value in options.items()]
        return {
            **{"shape": shape, "limit_tokens": limit_tokens},
            **{"policy": ":".join([self.policy, *settings])},
            "predictor": self.predictor,
        }


_ALPHA = ("alpha", (0.2, 0.5, 1.0))
_WORK_WEIGHT = ("alpha_s_per_token", (0.0002, 0.0, 0.001, 0.008))
_PUBLISHED = "sliding:published=on"

EDF = Row(name="edf", policy="edf")
QOSERVE = Row(name="qoserve", policy="qoserve", knobs=(_WORK_WEIGHT,))
SLIDING = Row(name="sliding", policy="sliding", is_tuned=False)
PUBLISHED = Row(
    name="sliding, as published",
    policy=_PUBLISHED,
    knobs=(_ALPHA,),
)
LINEAR = Row(
    name="sliding, linear predictor",
    policy="sliding",
    predictor="linear",
    is_tuned=False,
    shapes=(CONTINUOUS,),
)
FCFS = Row(name="fcfs", policy="fcfs", shapes=(BUCKETS,))
SJF = Row(name="sjf", policy="sjf", shapes=(BUCKETS,))
CHUNKER = Row(
    name="+ SlidingChunker",
    policy=f"{_PUBLISHED}:sorter=off:constructor=off",
    workloads=(paper.ABLATION_WORKLOAD,),
)
SORTER = Row(
    name="+ MLPS",
    policy=f"{_PUBLISHED}:constructor=off",
    knobs=(_ALPHA,),
    workloads=(paper.ABLATION_WORKLOAD,),
)
MAIN_ROWS = (EDF, QOSERVE, SLIDING)  # the paper's, in the order of its POLICIES
GOODPUT_ROWS = (FCFS, SJF, EDF, QOSERVE, PUBLISHED, SLIDING, LINEAR)
ABLATION_ROWS = (EDF, CHUNKER, SORTER, PUBLISHED, SLIDING)
TUNED_ROWS = (FCFS, SJF, EDF, QOSERVE, PUBLISHED, CHUNKER, SORTER)
