"""The samples file: measured steps and their durations.

One `.npz` file holds the arrays of `Samples` and, as JSON, its facts. Whole steps are
held out, not single measurements, since the repeats of one step are nearly equal. The
split is made once, here, so that all models are judged on the same steps.
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jserve_sched.steps.features import NUM_FEATURES, scenarios
from jserve_sched.steps.record import StepRecord, recorded_features
from jserve_sched.timing.predictor import StepSample
from jserve_tools.reporting.documents import write_whole

FORMAT_VERSION = 2
TRAIN, VALIDATION, TEST = range(3)
_VALIDATION_SHARE, _TEST_SHARE = 0.2, 0.25
_MOST_RECORDED = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Measured steps: `N` of them in `R` rounds, and `M` at a server's start.

    Attributes:
      features: `[N, F]` float64; see `jserve_sched.steps.features`.
      duration_s: `[R, N]` float64, seconds, all above 0.
      split: `[N]` int8, `TRAIN`, `VALIDATION` or `TEST`.
      timed_features: `[M, F]` float64, the steps of the timed pass.
      timed_s: `[M]` float64, seconds of the timed pass.
      facts: Version, device, model, engine, limits, command, as JSON can hold them.
    """

    features: np.ndarray
    duration_s: np.ndarray
    split: np.ndarray
    timed_features: np.ndarray
    timed_s: np.ndarray
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        num_rounds, num_steps = self.duration_s.shape
        if self.features.shape != (num_steps, NUM_FEATURES):
            raise ValueError(f"features have shape {self.features.shape}")
        if self.split.shape != (num_steps,) or not num_steps * num_rounds:
            raise ValueError("the samples are empty, or not each step has a split")
        if self.timed_features.shape != (len(self.timed_s), NUM_FEATURES):
            raise ValueError(f"timed_features have shape {self.timed_features.shape}")
        for seconds in (self.duration_s, self.timed_s):
            if not (np.isfinite(seconds) & (seconds > 0)).all():
                raise ValueError("a duration is not finite, or not above 0")

    @property
    def median_s(self) -> np.ndarray:
        """Median duration of each step over the rounds, `[N]` seconds."""
        return np.asarray(np.median(self.duration_s, axis=0))

    def steps(self, chosen: np.ndarray | None = None) -> Iterator[StepSample]:
        """Yields the timed pass, and the medians of all steps or those `chosen`."""
        yield from map(StepSample, self.timed_features, self.timed_s.tolist())
        places = slice(None) if chosen is None else chosen
        yield from map(
            StepSample, self.features[places], self.median_s[places].tolist()
        )

    def for_training(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns features `[R * N, F]`, seconds, and which are for validation.

        The steps for the test are not among the `N`.
        """
        steps, rounds = np.flatnonzero(self.split != TEST), len(self.duration_s)
        return (
            np.tile(self.features[steps], (rounds, 1)),
            self.duration_s[:, steps].ravel(),
            np.tile(self.split[steps] == VALIDATION, rounds),
        )

    def steps_in(self, part: int) -> np.ndarray:
        """Returns the indices of the steps in a part of the split."""
        return np.flatnonzero(self.split == part)


def repeat_spread(duration_s: np.ndarray) -> np.ndarray:
    """Returns each step's spread between rounds `[N]`, relative to its median.

    The spread is the median absolute deviation of the seconds `[R, N]`. It is the
    typical error of a step's median as a prediction of a single measurement.
    """
    median_s = np.median(duration_s, axis=0)
    spread: np.ndarray = np.median(np.abs(duration_s - median_s), axis=0) / median_s
    return spread


def split_steps(matrix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the part of each step, `[N]` int8, with equal shares of scenarios."""
    split = np.full(len(matrix), TRAIN, np.int8)
    scenario = scenarios(matrix)
    for value in np.unique(scenario):
        steps = rng.permutation(np.flatnonzero(scenario == value))
        num_test = round(_TEST_SHARE * len(steps))
        num_validation = round(_VALIDATION_SHARE * len(steps))
        split[steps[:num_test]] = TEST
        split[steps[num_test : num_test + num_validation]] = VALIDATION
    return split


def recorded_samples(
    header: Mapping[str, Any], steps: Sequence[StepRecord], rng: np.random.Generator
) -> Samples:
    """Returns samples of a server's step log, at most `_MOST_RECORDED` of its steps.

    Steps beside which programs were made are left out.
    """
    usual = [one for one in steps if one.duration_s > 0 and not one.num_compiling]
    usual = usual[:: len(usual) // _MOST_RECORDED + 1]
    matrix = recorded_features(usual)
    return Samples(
        features=matrix,
        duration_s=np.array([[one.duration_s for one in usual]]),
        split=split_steps(matrix, rng),
        timed_features=matrix[:0],
        timed_s=np.empty(0),
        facts=header,
    )


def write_samples(path: pathlib.Path, samples: Samples) -> None:
    """Writes the file atomically."""
    content = io.BytesIO()
    facts = {"format_version": FORMAT_VERSION, **samples.facts}
    np.savez_compressed(
        content,
        features=samples.features,
        # float32 resolves a tenth of a microsecond in a second.
        duration_s=samples.duration_s.astype(np.float32),
        split=samples.split,
        timed_features=samples.timed_features,
        timed_s=samples.timed_s.astype(np.float32),
        facts=np.array(json.dumps(facts)),
    )
    write_whole(path, content.getvalue())


def read_samples(path: pathlib.Path) -> Samples:
    """Reads a samples file.

    Raises:
      ValueError: If it is missing, damaged, of another version, or not such a file.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(str(arrays.pop("facts")))
        version = facts["format_version"]
        if version != FORMAT_VERSION:
            raise ValueError(f"it has version {version}, not {FORMAT_VERSION}")
        split = arrays.pop("split")
        floats = {name: one.astype(np.float64) for name, one in arrays.items()}
        return Samples(split=split, facts=facts, **floats)
    except Exception as error:  # zip, NumPy and JSON raise many kinds of errors
        message = f"samples={str(path)!r} cannot be read: {error}"
        raise ValueError(message) from error
