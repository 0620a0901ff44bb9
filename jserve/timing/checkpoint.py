"""A trained step-time predictor on disk: its weights, and the facts they hold for.

Weights are wrong for another device, model or page size, so these facts are stored with
them and checked before use. Both are in `<folder>/checkpoint`, which Orbax writes
atomically; a trainer may keep other files beside it.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jserve_models.config import ModelConfig
from jserve_sched.steps.features import NUM_FEATURES
from jserve_sched.timing.mlp import MlpPredictor, MlpWeights

FORMAT_VERSION = 3
_CHECKPOINT = "checkpoint"
# The facts that must agree, and the fault if they differ.
_FAULTS = {
    "platform": "device",
    "device_kind": "device",
    "model": "model",
    "dtype": "model",
    "page_size": "layout",
    "block_tokens": "layout",
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; its message is one sentence.

    Attributes:
      fault: The reason in one word, for metrics: "missing", "unreadable" (truncated,
        damaged, or not a checkpoint), "version", or a value of `_FAULTS`.
    """

    def __init__(self, folder: pathlib.Path, fault: str, message: str):
        super().__init__(f"predictor checkpoint {str(folder)!r} {message}")
        self.fault = fault


def model_digest(config: ModelConfig) -> str:
    """Returns a digest of all fields that differ from their defaults.

    A new field with a default does not change the digests of older models.
    """
    fields = {
        field.name: repr(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    }
    content = json.dumps(fields, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictorFacts:
    """Engine that a predictor was measured with, and its errors.

    Attributes:
      platform: Platform of the device, as JAX names it.
      device_kind: Kind of the device, as JAX names it.
      model: Digest of the model's configuration.
      dtype: Type of computation and KV, and of matrices that are stored in another.
      page_size: Tokens in one KV page.
      block_tokens: Tokens in one prefill block, Q.
      jax_version: Version of JAX at training; not checked, like the following fields.
      commit: Commit of the code at training; "" if unknown.
      report: Errors on held-out steps, for information.
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


def save_checkpoint(
    folder: pathlib.Path, facts: PredictorFacts, weights: MlpWeights
) -> None:
    """Writes a checkpoint; replaces an older one.

    Raises:
      OSError: If the folder cannot be written.
    """
    import orbax.checkpoint as ocp  # takes a third of a second to import

    document = {"format_version": FORMAT_VERSION, **dataclasses.asdict(facts)}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(
            folder.absolute() / _CHECKPOINT,
            ocp.args.Composite(
                weights=ocp.args.StandardSave(dataclasses.asdict(weights)),
                facts=ocp.args.JsonSave(document),
            ),
            force=True,
        )


def load_checkpoint(
    folder: pathlib.Path, *, expected: PredictorFacts | None = None
) -> tuple[MlpWeights, PredictorFacts]:
    """Reads a checkpoint, and checks it by one prediction.

    Args:
      expected: Facts that it must have been measured with; None accepts any.

    Raises:
      CheckpointError: If it is missing or damaged, or its facts differ.
    """
    import orbax.checkpoint as ocp

    folder = folder.expanduser().absolute()
    if not (folder / _CHECKPOINT).is_dir():
        raise CheckpointError(folder, "missing", "does not exist")
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            found = checkpointer.restore(
                folder / _CHECKPOINT,
                ocp.args.Composite(
                    weights=ocp.args.StandardRestore(), facts=ocp.args.JsonRestore()
                ),
            )
        facts = dict(found["facts"])
        version = facts.pop("format_version")
        if version != FORMAT_VERSION:
            message = f"has format version {version}, not {FORMAT_VERSION}"
            raise CheckpointError(folder, "version", message)
        difference = expected and first_difference(facts, expected)
        if difference:
            raise CheckpointError(folder, *difference)
        tree = dict(found["weights"])
        weights = MlpWeights(layers=tuple(map(tuple, tree.pop("layers"))), **tree)
        answer_s = MlpPredictor(weights).quantiles(np.ones((1, NUM_FEATURES)))[1]
        if not np.isfinite(answer_s).all():
            raise ValueError(f"it predicts {answer_s[0]} s")
        return weights, PredictorFacts(**facts)
    except CheckpointError:
        raise
    except Exception as error:  # Orbax raises many kinds of errors
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        message = f"cannot be used: {reason}"
        raise CheckpointError(folder, "unreadable", message) from error


def first_difference(
    facts: Mapping[str, Any], expected: PredictorFacts
) -> tuple[str, str] | None:
    """Returns the fault of the first known fact that differs, and a sentence's end."""
    for name, fault in _FAULTS.items():
        wanted = getattr(expected, name)
        if name in facts and facts[name] != wanted:
            found = facts[name]
            return fault, f"was made for {name} {found!r}; here it is {wanted!r}"
    return None
