"""The samples file: what steps were measured, and how long they took.

One `.npz` file holds it all (`N` steps, `R` rounds, `F` features, `M` timed steps):

    features     [N, F]   what each step computed, see jserve_sched.features
    duration_s   [R, N]   seconds, one row a round
    split        [N]      0 for training, 1 for validation, 2 for the test
    timed_features, timed_s   [M, F] and [M]: the timed pass of a server's start
    facts                 JSON: version, device, model, engine, limits, command

A *step*, not a measurement, is held out: repeats of one step agree whatever a model
learned. The split is made here, once, so that all models are judged on the same steps.
"""

import dataclasses
import io
import json
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jserve_sched.features import NUM_FEATURES, scenarios
from jserve_tools.documents import write_whole

FORMAT_VERSION = 1
TRAIN, VALIDATION, TEST = range(3)
_VALIDATION_SHARE, _TEST_SHARE = 0.2, 0.25


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Measured steps.

    Attributes:
      features: `[N, F]` float64.
      duration_s: `[R, N]` float64, seconds, all above 0.
      split: `[N]` int8, `TRAIN`, `VALIDATION` or `TEST`.
      timed_features: `[M, F]` float64, the steps of the timed pass.
      timed_s: `[M]` float64, seconds of the timed pass.
      facts: Where the numbers come from, as JSON can hold it.
    """

    features: np.ndarray
    duration_s: np.ndarray
    split: np.ndarray
    timed_features: np.ndarray
    timed_s: np.ndarray
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        num_steps = len(self.features)
        shapes = {
            "features": (self.features, (num_steps, NUM_FEATURES)),
            "duration_s": (self.duration_s, (len(self.duration_s), num_steps)),
            "split": (self.split, (num_steps,)),
            "timed_features": (self.timed_features, (len(self.timed_s), NUM_FEATURES)),
            "timed_s": (self.timed_s, (len(self.timed_s),)),
        }
        for name, (array, shape) in shapes.items():
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, not {shape}")
            if not np.isfinite(array).all():
                raise ValueError(f"{name} holds a number that is not finite")
        if not self.duration_s.size:
            raise ValueError("there is no sample")
        for name in ("duration_s", "timed_s"):
            array = getattr(self, name)
            if array.size and array.min() <= 0:
                raise ValueError(f"{name} holds {array.min()} s, not above 0")
        if not np.isin(self.split, (TRAIN, VALIDATION, TEST)).all():
            raise ValueError("split holds a value that is not 0, 1 or 2")

    @property
    def median_s(self) -> np.ndarray:
        """Median duration of each step over the rounds, `[N]` seconds."""
        return np.asarray(np.median(self.duration_s, axis=0))

    def steps_in(self, part: int) -> np.ndarray:
        """Returns the indices of the steps in a part of the split."""
        return np.flatnonzero(self.split == part)


def repeat_spread(duration_s: np.ndarray) -> np.ndarray:
    """Returns each step's spread between rounds `[N]`, relative to its median.

    The spread is the median absolute deviation: the typical error of a prediction
    that knows a step's median and is judged by a single measurement of it.

    Args:
      duration_s: `[R, N]` seconds.
    """
    median_s = np.median(duration_s, axis=0)
    spread: np.ndarray = np.median(np.abs(duration_s - median_s), axis=0) / median_s
    return spread


def split_steps(matrix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a part for each step, `[N]` int8, in equal shares of each scenario.

    Args:
      matrix: Features `[N, F]`.
      rng: Draws the parts.
    """
    split = np.full(len(matrix), TRAIN, np.int8)
    scenario = scenarios(matrix)
    for value in np.unique(scenario):
        steps = rng.permutation(np.flatnonzero(scenario == value))
        num_test = round(_TEST_SHARE * len(steps))
        num_validation = round(_VALIDATION_SHARE * len(steps))
        split[steps[:num_test]] = TEST
        split[steps[num_test : num_test + num_validation]] = VALIDATION
    return split


def write_samples(path: pathlib.Path, samples: Samples) -> None:
    """Writes the file whole: an interrupt leaves the old one."""
    content = io.BytesIO()
    facts = {"format_version": FORMAT_VERSION, **samples.facts}
    np.savez_compressed(
        content,
        features=samples.features,
        # Four bytes hold a tenth of a microsecond in a second.
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
        content = io.BytesIO(path.read_bytes())
        with np.load(content, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        facts = json.loads(str(arrays.pop("facts")))
        version = facts.get("format_version")
        if version == FORMAT_VERSION:
            split = arrays.pop("split")
            floats = {name: one.astype(np.float64) for name, one in arrays.items()}
            return Samples(split=split, facts=facts, **floats)
    except OSError as error:
        raise ValueError(f"samples={str(path)!r}: {error}") from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"samples={str(path)!r} is damaged: {error}") from None
    except (KeyError, ValueError, TypeError, AttributeError, EOFError) as error:
        message = f"samples={str(path)!r} is not a samples file: {error}"
        raise ValueError(message) from None
    raise ValueError(
        f"samples={str(path)!r} has format version {version}, this program reads "
        f"{FORMAT_VERSION}; measure again with jserve-profile"
    )
