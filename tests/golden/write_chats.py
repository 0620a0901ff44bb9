"""Writes the tokenizers of the folders in `chats`, and their token ids by transformers.

Needs the `parity` dependency group; the tests that read the files do not. Each folder
has the settings and templates of a kind of public model, and one of the small
tokenizers that this program trains. `ids.npz` has the ids of each chat of `chats.json`,
none where the template refuses it, and of the texts of `texts.json`.
"""

import io
import json
import pathlib
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

ROOT = pathlib.Path(__file__).parent / "chats"


def lines() -> list[str]:
    """Returns the text that the tokenizers are trained on."""
    files = sorted([*ROOT.glob("*.json"), *ROOT.glob("*/chat_template.jinja")])
    return [line for one in files for line in one.read_text().splitlines()]


def train_words() -> None:
    """Writes a byte-level tokenizer, as a whole and as a vocabulary with merges."""
    built = tokenizers.Tokenizer(models.BPE())
    built.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(PRETOKENIZE_REGEX), "isolated")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    built.pre_tokenizer = pre_tokenizers.Sequence([split, spell])
    built.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, show_progress=False
    )
    built.train_from_iterator(lines(), trainer)
    built.model.save(str(ROOT / "bpe"))
    tokens = json.loads((ROOT / "tokens.json").read_text())
    built.add_special_tokens(tokens["special"])
    built.add_tokens(tokens["others"])
    built.save(str(ROOT / "bpe" / "tokenizer.json"))


def train_pieces(folder: str, kind: str) -> None:
    """Writes a `tokenizer.model` of SentencePiece."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines()),
        model_writer=model,
        model_type=kind,
        vocab_size=420,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["[INST]", "[/INST]"],
        minloglevel=2,
    )
    (ROOT / folder / "tokenizer.model").write_bytes(model.getvalue())


def ids_of(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the ids of all chats and texts in a folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    found: dict[str, Any] = {}
    for name, chat in json.loads((ROOT / "chats.json").read_text()).items():
        chat["conversation"] = chat.pop("messages")
        if "name" in chat:
            chat["chat_template"] = chat.pop("name")
            if not isinstance(tokenizer.chat_template, dict):
                continue
        try:
            ids = tokenizer.apply_chat_template(**chat)["input_ids"]
        except Exception as error:
            print(f"{folder.name}, {name}: {error!r}"[:150])
            ids = []
        found[name] = ids
    for name, text in json.loads((ROOT / "texts.json").read_text()).items():
        found[name] = tokenizer(text)["input_ids"]
    print(folder.name, type(tokenizer).__name__, tokenizer.special_tokens_map)
    found["eos"] = [tokenizer.eos_token_id]
    return {f"{folder.name}/{name}": ids for name, ids in found.items()}


def main() -> None:
    """Writes all files."""
    train_words()
    train_pieces("pieces", "bpe")
    arrays: dict[str, Any] = {}
    for path in sorted(ROOT.glob("*/tokenizer_config.json")):
        arrays |= ids_of(path.parent)
    shorts: dict[str, Any] = {
        name: np.array(ids, np.int16) for name, ids in arrays.items()
    }
    np.savez_compressed(ROOT / "ids.npz", **shorts)


if __name__ == "__main__":
    main()
