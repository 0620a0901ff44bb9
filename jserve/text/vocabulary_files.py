"""Builds a tokenizer of a Hugging Face folder, from whichever files hold it.

Most folders have it as a whole, in `tokenizer.json`. Older ones have a vocabulary, of
SentencePiece or with merges, and say by a class name what is done to a text before.
"""

import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import tokenizers
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

_QWEN_WORDS = (  # with one digit; of Llama 3 with up to three
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # kinds of SentencePiece's pieces
_BPE = 2  # kind of its models


def build_tokenizer(
    folder: pathlib.Path, settings: dict[str, Any]
) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a folder.

    Args:
      settings: Content of `tokenizer_config.json`; gets the special tokens that only
        the vocabulary names.

    Raises:
      ValueError: If the folder has no tokenizer or a file of it is broken, by name.
    """
    whole, pieces = folder / "tokenizer.json", folder / "tokenizer.model"
    words, merges = folder / "vocab.json", folder / "merges.txt"
    try:
        if (path := whole).is_file():
            return tokenizers.Tokenizer.from_file(str(path))
        if (path := pieces).is_file():
            built = _sentencepiece(path.read_bytes(), settings)
        elif (path := words).is_file() and merges.is_file():
            built = _byte_level(words, merges, settings)
        else:
            raise ValueError(
                f"no tokenizer.json in {folder}, and neither tokenizer.model nor "
                "vocab.json with merges.txt"
            )
    except Exception as error:  # the library raises plain Exception
        if isinstance(error, ValueError) and str(folder) in str(error):
            raise
        raise ValueError(f"{path} is not a tokenizer: {error!r}") from None
    return built


def add_ends(tokenizer: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
    """Lets a tokenizer built from a vocabulary begin and end texts as the settings say.

    Args:
      settings: As in `tokenizer_config.json`, with the text of each special token.
    """
    ends = [
        settings[f"{one}_token"] if settings.get(f"add_{one}_token") else None
        for one in ("bos", "eos")
    ]
    form = [*ends[:1], "$A", *ends[1:]]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[one for one in form if one],
        special_tokens=[(one, tokenizer.token_to_id(one)) for one in ends if one],
    )


def _fields(data: bytes) -> dict[int, list[Any]]:
    """Returns the fields of a protocol buffer by number, each with all its values."""
    fields: dict[int, list[Any]] = {}
    for field in UnknownFieldSet(Empty.FromString(data)):
        fields.setdefault(field.field_number, []).append(field.data)
    return fields


def _sentencepiece(data: bytes, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a `ModelProto` of SentencePiece."""
    model = _fields(data)
    trainer, normalizer = (_fields(model.get(one, [b""])[-1]) for one in (2, 3))
    pieces = []
    for one in map(_fields, model[1]):
        (score,) = struct.unpack("<f", struct.pack("<I", one.get(2, [0])[-1]))
        pieces.append((one[1][-1].decode(), score, one.get(3, [_NORMAL])[-1]))
    ids = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    # The model: pieces that merge earlier have lower ids.
    unknown = trainer.get(40, [0])[-1]
    has_bytes = bool(trainer.get(35, [0])[-1])
    if trainer.get(3, [1])[-1] == _BPE:
        merged = [piece for piece, _, kind in pieces if kind == _NORMAL]
        merges = [
            (piece[:cut], piece[cut:])
            for piece in merged
            for cut in range(1, len(piece))
            if piece[:cut] in ids and piece[cut:] in ids
        ]
        built = tokenizers.Tokenizer(
            models.BPE(
                ids,
                merges,
                unk_token=pieces[unknown][0],
                fuse_unk=True,
                byte_fallback=has_bytes,
            )
        )
    else:
        scored = [(piece, score) for piece, score, _ in pieces]
        built = tokenizers.Tokenizer(models.Unigram(scored, unknown, has_bytes))
    # What is done to a text before and after.
    if normalizer.get(2, [b""])[-1] or normalizer.get(4, [1])[-1]:
        name = normalizer.get(1, [b""])[-1].decode()
        raise ValueError(f"its normalizer {name!r} is not identity, with all spaces")
    has_prefix = settings.get("add_prefix_space")
    if has_prefix is None:
        has_prefix = normalizer.get(3, [1])[-1]
    after_tokens = "always" if settings.get("legacy") else "first"
    scheme: Any = after_tokens if has_prefix else "never"
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    built.decoder = decoders.Sequence([*steps, *strip])
    # Its special tokens.
    built.add_tokens(
        [
            tokenizers.AddedToken(piece, normalized=False, special=kind == _CONTROL)
            for piece, _, kind in pieces
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    for name, field, default in (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2)):
        index = trainer.get(field, [default])[-1]
        if index < len(pieces):  # -1 is read as a huge number
            settings.setdefault(f"{name}_token", pieces[index][0])
    return built


def _byte_level(
    words: pathlib.Path, merges: pathlib.Path, settings: dict[str, Any]
) -> tokenizers.Tokenizer:
    """Returns the tokenizer of a vocabulary with merges, by the name of its class."""
    kind = str(settings.get("tokenizer_class")).removesuffix("Fast")
    built = tokenizers.Tokenizer(models.BPE.from_file(str(words), str(merges)))
    has_prefix = bool(settings.get("add_prefix_space"))
    if kind in ("Qwen2Tokenizer", "Llama3Tokenizer"):
        digits = "" if kind == "Qwen2Tokenizer" else "{1,3}"
        if digits:
            built.model.ignore_merges = True
        else:
            built.normalizer = normalizers.NFC()
        words_form = _QWEN_WORDS.replace(r"|\p{N}|", rf"|\p{{N}}{digits}|")
        split = pre_tokenizers.Split(tokenizers.Regex(words_form), "isolated")
        spell = pre_tokenizers.ByteLevel(add_prefix_space=has_prefix, use_regex=False)
        built.pre_tokenizer = pre_tokenizers.Sequence([split, spell])
    elif kind == "GPT2Tokenizer":
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_prefix)
    else:
        raise ValueError(
            f"{words.parent} has no tokenizer.json, and its tokenizer_class={kind} is "
            "not one of Qwen2Tokenizer, GPT2Tokenizer; transformers' save_pretrained "
            "writes the file"
        )
    built.decoder = decoders.ByteLevel()
    for name in ("unk", "eos") + ("bos",) * (kind == "GPT2Tokenizer"):
        settings.setdefault(f"{name}_token", "<|endoftext|>")
    return built
