"""Worker of `in_process.py`: Transformers' `generate`, a batch at a time.

Runs in the peers' environment. `--compile` uses a static KV cache, so that one
compiled graph serves each decode step; otherwise shapes grow and nothing is
compiled, which is Transformers' default on a CPU.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from absl import app, flags
from worker_protocol import Answer, serve_lines

_MODEL = flags.DEFINE_string("model", None, "Model folder.", required=True)
_THREADS = flags.DEFINE_integer("threads", 2, "Threads torch may use.")
_COMPILE = flags.DEFINE_bool("compile", False, "Compile the forward pass.")


class Generator:
    """A model and how it generates."""

    def __init__(self, folder: str, *, compiles: bool):
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self._options: dict[str, Any] = {}
        if compiles:
            self._model.forward = torch.compile(self._model.forward, dynamic=False)
            self._options["cache_implementation"] = "static"

    @property
    def settings(self) -> dict[str, Any]:
        """What was chosen for it."""
        return {
            "threads": torch.get_num_threads(),
            "dtype": str(self._model.dtype),
            "attention": self._model.config._attn_implementation,
            "compile": bool(self._options),
            **self._options,
        }

    def generate(self, prompts: list[list[int]], batch: int, max_tokens: int) -> Answer:
        """Returns the seconds it took, greedy, and the outputs."""
        outputs = []
        start_s = time.perf_counter()
        for first in range(0, len(prompts), batch):
            ids = torch.tensor(prompts[first : first + batch])
            with torch.inference_mode():
                answer = self._model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=max_tokens,
                    min_new_tokens=max_tokens,
                    do_sample=False,
                    **self._options,
                )
            outputs.extend(answer[:, ids.shape[1] :].tolist())
        return Answer(time.perf_counter() - start_s, outputs, {})


def main(argv: Sequence[str]) -> None:
    """Serves jobs until stdin ends."""
    del argv
    torch.set_num_threads(_THREADS.value)
    generator = Generator(_MODEL.value, compiles=_COMPILE.value)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    serve_lines(
        lambda: {"versions": versions, "settings": generator.settings},
        generator.generate,
    )


if __name__ == "__main__":
    app.run(main)
