"""A trained step-time predictor on disk: its weights, and what they hold for.

Weights are worth nothing on another device, model or page size, so facts travel with
them and are checked before use.

    <folder>/weights/      an Orbax checkpoint of NumPy arrays
    <folder>/facts.json    format, device, model, layout, a digest of the arrays

The facts are written last, and whole; a writer that died in between leaves a digest
that does not match. A trainer may keep what it needs in further sub-folders.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jserve_sched.features import NUM_FEATURES
from jserve_sched.linear_predictor import LinearModel
from jserve_sched.mlp_predictor import MlpPredictor, MlpWeights

if TYPE_CHECKING:
    from jserve.engine import Engine

FORMAT_VERSION = 1
_WEIGHTS, _FACTS = "weights", "facts.json"
# The facts that must agree, and what a difference is called.
_FAULTS = {
    "platform": "device",
    "device_kind": "device",
    "model": "model",
    "dtype": "model",
    "page_size": "layout",
    "block_tokens": "layout",
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; says why in one sentence.

    Attributes:
      fault: The same in a word, for metrics: "missing", "unreadable" (truncated,
        damaged, or not such a checkpoint), "version", or one of `_FAULTS`.
    """

    def __init__(self, folder: pathlib.Path, fault: str, message: str):
        super().__init__(f"predictor checkpoint {str(folder)!r} {message}")
        self.fault = fault


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorFacts:
    """What a predictor was measured with, and how well it did.

    Attributes:
      platform: Platform of the device, as JAX names it.
      device_kind: Kind of the device, as JAX names it.
      model: Digest of the model's configuration.
      dtype: Type of weights and KV.
      page_size: Tokens in one KV page.
      block_tokens: Tokens in one prefill block, Q.
      jax_version: Version at training; not checked.
      commit: Commit of the code, "" if unknown; not checked.
      report: Errors on held-out shapes, for people; not checked.
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
    def of(cls, engine: "Engine", *, commit: str = "") -> "PredictorFacts":
        """Returns the facts of an engine; the model is identified by its `repr`."""
        device = jax.devices()[0]
        config = repr(engine.model.config).encode()
        return cls(
            platform=device.platform,
            device_kind=device.device_kind,
            model=hashlib.sha256(config).hexdigest()[:16],
            dtype=engine.dtype.name,
            page_size=engine.page_size,
            block_tokens=engine.programs.table.block_tokens,
            commit=commit,
        )


def save_checkpoint(
    folder: pathlib.Path, weights: MlpWeights, facts: PredictorFacts
) -> None:
    """Writes a checkpoint; replaces the one that is there.

    Raises:
      OSError: If the folder cannot be written.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    tree = {
        "linear": dataclasses.asdict(weights.linear),
        "inputs": {
            name: getattr(weights, name) for name in ("mean", "scale", "low", "high")
        },
        "layers": {
            f"{index:03d}": {"kernel": kernel, "bias": bias}
            for index, (kernel, bias) in enumerate(weights.layers)
        },
    }
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
    """Reads a checkpoint, and asks it once.

    Args:
      folder: Where it lies.
      expected: Facts that it must have been measured with; None takes any.

    Raises:
      CheckpointError: If it is missing, damaged, or for something else.
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
        if _digest(tree) != digest:
            raise ValueError("they are not those that its facts were written for")
        layers = [layer for _, layer in sorted(tree["layers"].items())]
        weights = MlpWeights(
            linear=LinearModel(**tree["linear"]),
            **tree["inputs"],
            layers=tuple((layer["kernel"], layer["bias"]) for layer in layers),
        )
        answer_s = MlpPredictor(weights).predict_upper(np.ones((1, NUM_FEATURES)))
        if not np.isfinite(answer_s).all():
            raise ValueError(f"they predict {answer_s[0]} s")
    except Exception as error:  # Orbax lets any error of its stores through
        raise CheckpointError(
            folder,
            "unreadable",
            f"has weights that cannot be used: {_first_line(error)}",
        ) from error
    return weights, facts


def _read_facts(folder: pathlib.Path) -> tuple[PredictorFacts, str]:
    """Returns the facts and the digest of the weights they belong to."""
    try:
        document = dict(json.loads((folder / _FACTS).read_text()))
        version = document.pop("format_version", None)
        digest = str(document.pop("digest", ""))
        if version == FORMAT_VERSION:
            return PredictorFacts(**document), digest
    except (FileNotFoundError, NotADirectoryError):
        message = "holds no facts.json" if folder.is_dir() else "does not exist"
        raise CheckpointError(folder, "missing", message) from None
    except (OSError, ValueError, TypeError) as error:
        message = f"has facts that cannot be read: {_first_line(error)}"
        raise CheckpointError(folder, "unreadable", message) from None
    raise CheckpointError(
        folder,
        "version",
        f"has format version {version}; this program reads {FORMAT_VERSION}",
    )


def first_difference(
    facts: Mapping[str, Any], expected: PredictorFacts
) -> tuple[str, str] | None:
    """Returns how facts differ from those expected, as a fault and a sentence's end.

    Args:
      facts: Facts by name; those that it lacks are not compared.
      expected: Facts of the engine whose steps are predicted.
    """
    for name, fault in _FAULTS.items():
        wanted = getattr(expected, name)
        if name in facts and facts[name] != wanted:
            found = facts[name]
            return fault, f"was made for {name} {found!r}; here it is {wanted!r}"
    return None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _digest(tree: dict[str, Any]) -> str:
    """Returns a digest of the arrays' paths, types, shapes and numbers."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        value = np.ascontiguousarray(leaf)
        digest.update(f"{name} {value.dtype} {value.shape} ".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
