"""Fields that are not known: refused by name, or ignored and logged once.

The one idea: a field is refused exactly when honouring it would have changed the
answer. Clients send many with values that change nothing; those pass.
"""

import logging
from collections.abc import Mapping
from typing import Any

from jserve.server.errors import ApiError, quote

# For each field not supported: the values that ask for nothing. Some are known to
# the other endpoint, where they never come here.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "ebnf": (),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": ([],),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "json_schema": (),
    "logit_bias": ({},),
    "logits_processors": ([],),
    "max_completion_tokens": (),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "regex": (),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "structured_outputs": ({},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "web_search_options": (),
}
# 0 is not False here: a completion's `logprobs: 0` asks for one value a token.
_MAX_LOGGED = 1000
_MAX_NAME_CHARS = 80


def _is_harmless(name: str, value: Any) -> bool:
    if name == "logprobs":
        return value is None or value is False
    return value is None or value in _HARMLESS[name]


class FieldFilter:
    """Judges the fields of requests; remembers which names it has logged."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def check(self, fields: Mapping[str, Any] | None, *, where: str = "") -> None:
        """Refuses what would change the answer, and ignores the rest.

        Args:
          fields: names and values that no request model declares.
          where: path of the object that holds them, with a dot at its end.

        Raises:
          ApiError: 400 that names the field.
        """
        for name, value in (fields or {}).items():
            if name == "logprobs" or name in _HARMLESS:
                if not _is_harmless(name, value):
                    raise ApiError(
                        400,
                        f"{where}{name}={quote(value)} is not supported by this server",
                        param=f"{where}{name}",
                        code="unsupported_parameter",
                    )
            else:
                self._log(where + name)

    def _log(self, name: str) -> None:
        name = name[:_MAX_NAME_CHARS]
        if name in self._logged or len(self._logged) >= _MAX_LOGGED:
            return
        self._logged.add(name)
        logging.getLogger(__name__).warning("ignored the unknown field %r", name)
