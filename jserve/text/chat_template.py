"""Chat templates: turn a conversation into the text format a model was trained on.

A template is a program from a file, so it runs in Jinja's sandbox, and the server runs
it in a worker whose time and memory are limited. Its error about a conversation that it
cannot render, of whatever kind, is raised as a ValueError for the client.
"""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.sandbox

Message = Mapping[str, str]


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


class ChatTemplate:
    """A compiled template; `render` may be called from any thread."""

    def __init__(
        self,
        source: str,
        *,
        finalize: Callable[[Any], Any] | None = None,
        variables: Mapping[str, str] | None = None,
    ):
        """Compiles a template.

        Args:
          finalize: Function applied to each value that the template prints.
          variables: Further variables of the template, such as `bos_token`.

        Raises:
          ValueError: If the text is not a template.
        """
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols"],
            finalize=finalize,
        )
        # What can grow without limit is left to `render`, not folded while compiling.
        environment.intercepted_binops = frozenset({"*", "**", "%"})
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self._variables = dict(variables or {})
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"the chat template does not compile: {error}") from None

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool
    ) -> str:
        """Returns the conversation, turns with `role` and `content`, as one text.

        With `add_generation_prompt` it ends with the beginning of an assistant's turn.

        Raises:
          ValueError: If the template refuses the conversation.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **self._variables,
            )
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"the chat template refuses this chat: {reason}") from None
