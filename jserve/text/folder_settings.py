"""What a Hugging Face folder says of tokens, templates and sampling.

All is collected as by `transformers` 5. Special tokens are in `tokenizer_config.json`;
`added_tokens_decoder` in it makes the older files `special_tokens_map.json` and
`added_tokens.json` obsolete.
"""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import tokenizers

from jserve.text.chat_template import ChatTemplate
from jserve_models.hf import read_json
from jserve_sched.requests.request import SamplingParams

SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_UNNAMED = ("extra_special_tokens", "additional_special_tokens")


def read_settings(path: pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object in a file of a folder; an empty one without the file.

    Raises:
      ValueError: If it is something else.
    """
    return read_json(path) if path.is_file() else {}


def check_within(
    folder: pathlib.Path,
    vocab_size: Any,
    tokenizer: tokenizers.Tokenizer,
    ends: Iterable[int],
) -> None:
    """Checks that a model has its tokenizer's tokens, and the tokens that end outputs.

    A tokenizer may have more that are added: Gemma 3's has one for images.

    Raises:
      ValueError: If it has not.
    """
    own = tokenizer.get_vocab(with_added_tokens=False).values()
    for name, tokens in (("token", own), ("end token", ends)):
        last = max(tokens, default=0)
        if isinstance(vocab_size, int) and last >= vocab_size:
            raise ValueError(
                f"{folder}: its tokenizer or generation_config.json has the {name} "
                f"{last}, and config.json has vocab_size={vocab_size}"
            )


def add_special_tokens(
    folder: pathlib.Path, settings: dict[str, Any], tokenizer: tokenizers.Tokenizer
) -> dict[str, str]:
    """Adds a folder's tokens to its tokenizer; returns the texts of those with a name.

    Args:
      settings: Content of `tokenizer_config.json`.

    Raises:
      ValueError: If a token is neither a text nor an object that holds it.
    """
    try:
        return _add(folder, settings, tokenizer)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if str(folder) in str(error):
            raise
        files = "tokenizer_config.json, special_tokens_map.json or added_tokens.json"
        message = f"{folder} has a broken token in {files}: {error!r}"
        raise ValueError(message) from None


def _add(
    folder: pathlib.Path, settings: dict[str, Any], tokenizer: tokenizers.Tokenizer
) -> dict[str, str]:
    values = dict(settings)
    decoder = values.get("added_tokens_decoder") or {}
    if not decoder:
        values |= read_settings(folder / "special_tokens_map.json")
    # Those with a name, and those without.
    unnamed: Any = next((values[one] for one in _UNNAMED if values.get(one)), [])
    by_name = unnamed if isinstance(unnamed, dict) else {}
    named = {
        name: _token(value)
        for name, value in (values | by_name).items()
        if name.endswith("_token") or name in by_name
        if isinstance(value, str | dict)
    }
    special = [*named.values(), *map(_token, [] if by_name else unnamed)]
    texts = {one.content for one in special}
    # All tokens that the tokenizer lacks, or has with other flags.
    known = {one.content for one in tokenizer.get_added_tokens_decoder().values()}
    if decoder:
        rows = sorted(decoder.items(), key=lambda row: int(row[0]))
        added = [_token(value, value.get("special", False)) for _, value in rows]
    else:
        ids = read_settings(folder / "added_tokens.json")
        added = [
            tokenizers.AddedToken(
                text, normalized=text not in texts, special=text in texts
            )
            for text in sorted(ids, key=lambda text: int(ids[text]))
            if text not in known
        ]
    known |= {one.content for one in added}
    added += [one for one in special if one.content not in known]
    tokenizer.add_tokens(added)
    return {name: token.content for name, token in named.items()}


def _token(value: Any, is_special: bool = True) -> tokenizers.AddedToken:
    """Returns a token of the settings, which is a text or an object that holds it."""
    fields = {"content": value} if isinstance(value, str) else dict(value)
    unused = ("__type", "content", "special")
    flags = {key: one for key, one in fields.items() if key not in unused}
    return tokenizers.AddedToken(fields["content"], **flags, special=is_special)


def read_sampling(path: pathlib.Path, values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the sampling parameters of a `generation_config.json`.

    Raises:
      ValueError: If one is out of its range.
    """
    names = [one for one in SAMPLING_FIELDS if values.get(one) is not None]
    found = {name: values[name] for name in names}
    try:
        SamplingParams(seed=0, **found)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    return found


def read_template(
    folder: pathlib.Path,
    settings: Mapping[str, Any],
    variables: Mapping[str, str],
) -> ChatTemplate | None:
    """Returns the templates of a folder, from its files or else from its settings.

    Args:
      settings: Content of `tokenizer_config.json`.
      variables: Texts of the special tokens, by name.

    Raises:
      ValueError: If one cannot be read or does not compile.
    """
    path = folder / "tokenizer_config.json"
    more = folder.glob("additional_chat_templates/*.jinja")
    files = {one.stem: one for one in sorted(more)}
    if (default := folder / "chat_template.jinja").is_file():
        files["default"] = default
    value = settings.get("chat_template")
    try:
        if files:
            value = {name: one.read_text("utf-8") for name, one in files.items()}
            path = default
        if isinstance(value, list):  # several, by name
            value = {one["name"]: one["template"] for one in value}
        return ChatTemplate(value, variables=variables) if value else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
