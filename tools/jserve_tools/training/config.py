"""Configuration of `jserve-train-predictor` and of `jserve-train-model`."""

import dataclasses
import pathlib
from typing import Any

from jserve.config import check_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The predictor that is trained, its samples, and settings of the training.

    Attributes:
      samples: Samples file of jserve-profile.
      step_log: Step log of a server, in place of --samples; "" takes these.
      output: Folder for the trained predictor and its report.
      hidden: Number of units in each hidden layer.
      learning_rate: AdamW's learning rate at the start; it falls to 0 along a cosine
        over --max_epochs.
      weight_decay: AdamW's weight decay, of kernels only.
      max_epochs: Most epochs, of 50 optimiser steps each.
      patience: Number of epochs without a better validation loss after which training
        ends.
      seed: Seed of the initial weights.
    """

    samples: pathlib.Path = pathlib.Path("out/profile/samples.npz")
    step_log: pathlib.Path | None = None
    output: pathlib.Path = pathlib.Path("out/predictor")
    hidden: tuple[int, ...] = (32, 32)
    learning_rate: float = 1e-3
    weight_decay: float = 1.0
    max_epochs: int = 40
    patience: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.hidden:
            raise ValueError("hidden= is empty: a network needs a hidden layer")
        for num_units in self.hidden:
            check_range("hidden", num_units, 1, 1024)
        check_range("learning_rate", self.learning_rate, 1e-9, 1e9)
        check_range("weight_decay", self.weight_decay, 0.0, 1e3)
        check_range("max_epochs", self.max_epochs, 1, 1_000_000)
        check_range("patience", self.patience, 1, 1_000_000)
        check_range("seed", self.seed, 0, 2**31 - 1)

    @property
    def network(self) -> dict[str, Any]:
        """Settings of the network and its training."""
        names = ("hidden", "learning_rate", "weight_decay", "max_epochs", "patience")
        return {name: getattr(self, name) for name in (*names, "seed")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByteModelConfig:
    """The training of the model `tiny` on the standard library's text.

    Attributes:
      output: Folder for the trained model and its report.
      num_steps: Number of optimiser steps. The learning rate falls in the second half
        of them.
      num_long_steps: Number of steps at the end with windows of --long_window_tokens.
      batch_tokens: Tokens in one optimiser step.
      window_tokens: Tokens in one window of text.
      long_window_tokens: Tokens in one window of the steps at the end.
      chat_share: Share of windows that hold chats about docstrings.
      learning_rate: Muon's learning rate, for the kernels of the layers.
      adam_learning_rate: AdamW's learning rate, for all other parameters.
      weight_decay: Muon's weight decay.
      seed: Seed of the initial weights and of the windows.
    """

    output: pathlib.Path = pathlib.Path("out/model")
    num_steps: int = 500
    num_long_steps: int = 100
    batch_tokens: int = 4096
    window_tokens: int = 256
    long_window_tokens: int = 1536
    chat_share: float = 0.1
    learning_rate: float = 0.02
    adam_learning_rate: float = 0.004
    weight_decay: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("num_steps", self.num_steps, 1, 10_000_000)
        check_range("num_long_steps", self.num_long_steps, 0, self.num_steps // 2)
        check_range("window_tokens", self.window_tokens, 2, 2**14)
        check_range("long_window_tokens", self.long_window_tokens, 2, 2**14)
        longest = max(self.window_tokens, self.long_window_tokens)
        check_range("batch_tokens", self.batch_tokens, longest, 2**24)
        check_range("chat_share", self.chat_share, 0.0, 1.0)
        check_range("learning_rate", self.learning_rate, 1e-9, 1e3)
        check_range("adam_learning_rate", self.adam_learning_rate, 1e-9, 1e3)
        check_range("weight_decay", self.weight_decay, 0.0, 1e3)
        check_range("seed", self.seed, 0, 2**31 - 1)
