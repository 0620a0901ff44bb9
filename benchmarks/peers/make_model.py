"""Writes the model that all peers serve: a random Llama of 19.3 M parameters.

Runs in the peers' environment, which has torch and Transformers:

  benchmarks/peers/.venv-transformers/bin/python benchmarks/peers/make_model.py

Nothing is downloaded. The weights are random (seeded), and the tokenizer, a byte-level
BPE of 32,000 entries, is trained on the source text of the Python that runs this. No
token ends a text, so outputs have the requested length.
"""

import json
import pathlib
import sysconfig
from collections.abc import Iterator, Sequence

import torch
from absl import app, flags
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

_OUTPUT = flags.DEFINE_string(
    "output", "out/peers/model", "Folder to write; a complete one stays as it is."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the weights.")

VOCAB_SIZE = 32_000
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }}\n"
    "{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
_MAX_CORPUS_BYTES = 40 * 2**20


def _corpus() -> Iterator[str]:
    """Yields the source files of Python's standard library, up to a limit."""
    num_bytes = 0
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if "site-packages" in path.parts:
            continue
        num_bytes += path.stat().st_size
        if num_bytes > _MAX_CORPUS_BYTES:
            return
        yield path.read_text(encoding="utf-8", errors="replace")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE of exactly VOCAB_SIZE entries.

    Raises:
      ValueError: If there is too little text for this number.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(
            f"the corpus gave {tokenizer.get_vocab_size()} tokens, not {VOCAB_SIZE}"
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(seed: int) -> LlamaForCausalLM:
    """Returns the random model, float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=688,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=3)
    return model


def main(argv: Sequence[str]) -> None:
    """Writes the folder, unless it is complete."""
    del argv
    folder = pathlib.Path(_OUTPUT.value)
    complete = folder / "complete"
    if complete.exists():
        print(f"{folder} is complete")
        return
    model = make_model(_SEED.value)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    # Transformers 5 names a class here that version 4 cannot load.
    settings_file = folder / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings_file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    complete.touch()
    print(f"{folder}: {model.num_parameters():,} parameters")


if __name__ == "__main__":
    app.run(main)
