"""A trained step-time predictor on disk: its weights, and what they hold for.

The one idea: weights are worth nothing on another device, model or page size, so facts
travel with them and are checked before use. Nothing here needs a device: NumPy arrays
go into Orbax and come back.

    <folder>/weights/      an Orbax checkpoint of the arrays
    <folder>/facts.json    format, device, model, layout, a digest of the arrays

The facts are written last, and whole; a writer that died in between leaves a digest
that does not match. A trainer may keep what it needs in further sub-folders.
"""

import dataclasses
import enum
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jserve_sched.linear_predictor import LinearModel
from jserve_sched.mlp_predictor import MlpWeights

FORMAT_VERSION = 1
_WEIGHTS, _FACTS = "weights", "facts.json"


class CheckpointFault(enum.Enum):
    """Why a checkpoint is of no use."""

    MISSING = "missing"  # no such folder, or no facts in it
    UNREADABLE = "unreadable"  # truncated, damaged, or not such a checkpoint
    VERSION = "version"  # of another format
    DEVICE = "device"  # measured on another device
    MODEL = "model"  # measured with another model or dtype
    LAYOUT = "layout"  # measured with another page or block size


class CheckpointError(ValueError):
    """A checkpoint is of no use; says why in one sentence, and as a fault."""

    def __init__(self, folder: pathlib.Path, fault: CheckpointFault, message: str):
        super().__init__(f"predictor checkpoint {str(folder)!r} {message}")
        self.fault = fault


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorFacts:
    """What a predictor was measured with, and how well it did.

    Attributes:
      platform: of the device, as JAX names it.
      device_kind: the device.
      model: digest of the model's configuration.
      dtype: of weights and KV.
      page_size: tokens in one KV page.
      block_tokens: tokens in one prefill block, Q.
      jax_version: at training; not checked.
      commit: of the code; "" if unknown; not checked.
      report: errors on held-out shapes, for people; not checked.
    """

    platform: str
    device_kind: str
    model: str
    dtype: str
    page_size: int
    block_tokens: int
    jax_version: str = jax.__version__
    commit: str = ""
    report: dict[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def here(
        cls,
        model_config: object,
        *,
        dtype: str,
        page_size: int,
        block_tokens: int,
        commit: str = "",
        report: dict[str, Any] | None = None,
    ) -> "PredictorFacts":
        """Returns the facts of this process's first device.

        Args:
          model_config: the model's configuration, told apart by its `repr`.
          dtype: of weights and KV, resolved ("auto" is none).
          page_size: tokens in one KV page.
          block_tokens: tokens in one prefill block.
          commit: of the code.
          report: what training found.
        """
        device = jax.devices()[0]
        return cls(
            platform=device.platform,
            device_kind=device.device_kind,
            model=hashlib.sha256(repr(model_config).encode()).hexdigest()[:16],
            dtype=dtype,
            page_size=page_size,
            block_tokens=block_tokens,
            commit=commit,
            report=report or {},
        )


def save_checkpoint(
    folder: pathlib.Path, weights: MlpWeights, facts: PredictorFacts
) -> None:
    """Writes a checkpoint; replaces the one that is there.

    Raises:
      OSError: if the folder cannot be written.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    tree = _to_tree(weights)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / _WEIGHTS, tree, force=True)
    document = {
        "format_version": FORMAT_VERSION,
        "digest": _digest(tree),
        **dataclasses.asdict(facts),
    }
    draft = folder / (_FACTS + ".tmp")
    draft.write_text(json.dumps(document, indent=2) + "\n")
    draft.replace(folder / _FACTS)


def load_checkpoint(
    folder: pathlib.Path, *, expected: PredictorFacts | None = None
) -> tuple[MlpWeights, PredictorFacts]:
    """Reads a checkpoint.

    Args:
      folder: where it lies.
      expected: what it must have been measured with; None takes any.

    Raises:
      CheckpointError: if it is missing, damaged, or for something else.
    """
    folder = folder.expanduser().absolute()
    facts, digest = _read_facts(folder)
    if expected is not None:
        difference = first_difference(dataclasses.asdict(facts), expected)
        if difference is not None:
            raise CheckpointError(folder, *difference)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(folder / _WEIGHTS)
        found = _digest(tree)
        weights = _from_tree(tree)
    except Exception as error:  # Orbax lets any error of its stores through
        raise CheckpointError(
            folder,
            CheckpointFault.UNREADABLE,
            f"has weights that cannot be read: {_first_line(error)}",
        ) from error
    if found != digest:
        raise CheckpointError(
            folder,
            CheckpointFault.UNREADABLE,
            "has weights that are not those its facts were written for",
        )
    if not all(np.isfinite(one).all() for _, one in _leaves(tree)):
        raise CheckpointError(
            folder, CheckpointFault.UNREADABLE, "has weights that are not finite"
        )
    return weights, facts


def _read_facts(folder: pathlib.Path) -> tuple[PredictorFacts, str]:
    """Returns the facts and the digest of the weights they belong to."""
    path = folder / _FACTS
    try:
        document = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        what = "holds no facts.json" if folder.is_dir() else "does not exist"
        raise CheckpointError(folder, CheckpointFault.MISSING, what) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            folder,
            CheckpointFault.UNREADABLE,
            f"has facts that cannot be read: {_first_line(error)}",
        ) from None
    if not isinstance(document, dict):
        document = {}
    version = document.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise CheckpointError(
            folder,
            CheckpointFault.VERSION,
            f"has format version {version}; this program reads {FORMAT_VERSION}",
        )
    digest = str(document.pop("digest", ""))
    try:
        return PredictorFacts(**document), digest
    except TypeError as error:
        raise CheckpointError(
            folder, CheckpointFault.UNREADABLE, f"has other facts than known: {error}"
        ) from None


def first_difference(
    facts: Mapping[str, Any], expected: PredictorFacts
) -> tuple[CheckpointFault, str] | None:
    """Returns how facts differ from those expected, as a fault and a sentence's end.

    Args:
      facts: by name; those that it lacks are not compared.
      expected: of the engine that is to be priced.
    """
    for name, fault in (
        ("platform", CheckpointFault.DEVICE),
        ("device_kind", CheckpointFault.DEVICE),
        ("model", CheckpointFault.MODEL),
        ("dtype", CheckpointFault.MODEL),
        ("page_size", CheckpointFault.LAYOUT),
        ("block_tokens", CheckpointFault.LAYOUT),
    ):
        wanted = getattr(expected, name)
        if name in facts and facts[name] != wanted:
            found = facts[name]
            return fault, f"was made for {name} {found!r}; here it is {wanted!r}"
    return None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _to_tree(weights: MlpWeights) -> dict[str, Any]:
    return {
        "linear": {
            "coefficients": np.asarray(weights.linear.coefficients, np.float64),
            "has_expert": np.asarray(weights.linear.has_expert, np.bool_),
        },
        "inputs": {
            name: np.asarray(getattr(weights, name))
            for name in ("mean", "scale", "low", "high")
        },
        "layers": {
            f"{index:03d}": {"kernel": np.asarray(kernel), "bias": np.asarray(bias)}
            for index, (kernel, bias) in enumerate(weights.layers)
        },
    }


def _from_tree(tree: dict[str, Any]) -> MlpWeights:
    return MlpWeights(
        linear=LinearModel(**tree["linear"]),
        **tree["inputs"],
        layers=tuple(
            (layer["kernel"], layer["bias"])
            for _, layer in sorted(tree["layers"].items())
        ),
    )


def _leaves(
    tree: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (path, array) of a tree of dictionaries, in order of the paths."""
    for name, value in sorted(tree.items()):
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        else:
            yield "/".join((*path, name)), np.asarray(value)


def _digest(tree: dict[str, Any]) -> str:
    """Returns a digest of names, types, shapes and numbers."""
    digest = hashlib.sha256()
    for path, value in _leaves(tree):
        digest.update(f"{path} {value.dtype} {value.shape} ".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
