"""Chat templates: turn a conversation into the text format a model was trained on.

A template is a program from a file, so it runs in Jinja's sandbox, and the server runs
it in a worker whose time and memory are limited. Its error about a conversation that it
cannot render, of whatever kind, is raised as a ValueError for the client. What it can
see and call is what `transformers` gives it.
"""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox

Message = Mapping[str, Any]
_END = "\ufdd2 "  # of a message to be continued: a noncharacter, and what trimming cuts


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


class _Generation(jinja2.ext.Extension):
    """The tag that marks what a model is trained on; its body is printed as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


class ChatTemplate:
    """Compiled templates of a model, by name; `render` may be called from any thread.

    Attributes:
      text: What the templates write themselves, rather than print of a chat.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        *,
        finalize: Callable[[Any], Any] | None = None,
        variables: Mapping[str, str] | None = None,
    ):
        """Compiles templates.

        Args:
          source: Template, or several by name.
          finalize: Function applied to each value that a template prints.
          variables: Further variables of the templates, such as `bos_token`.

        Raises:
          ValueError: If a text is not a template.
        """
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
            finalize=finalize,
        )
        # What can grow without limit is left to `render`, not folded while compiling.
        environment.intercepted_binops = frozenset({"*", "**", "%"})
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self._variables = dict(variables or {})
        self._templates = {}
        texts: list[str] = []
        for name, text in ({"": source} if isinstance(source, str) else source).items():
            try:
                self._templates[name] = environment.from_string(text)
                tree = environment.parse(text)
            except (jinja2.TemplateError, RecursionError) as error:
                what = f"the chat template {name}".rstrip()
                raise ValueError(f"{what} does not compile: {error}") from None
            texts += [one.data for one in tree.find_all(jinja2.nodes.TemplateData)]
            values = [one.value for one in tree.find_all(jinja2.nodes.Const)]
            texts += [one for one in values if isinstance(one, str)]
        self.text = "\0".join(texts)

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        name: str | None = None,
    ) -> str:
        """Returns the conversation, turns with `role` and `content`, as one text.

        Args:
          add_generation_prompt: Ends it with the beginning of an assistant's turn.
          continue_final_message: Ends it with the last turn's content, without what
            closes the turn.
          name: Which of several templates; None takes `tool_use` if there are tools, or
            else `default`.

        Raises:
          ValueError: If there is no such template, or it refuses the conversation.
        """
        template = self._choose(name, tools is not None)
        turns = [
            {key: value for key, value in one.items() if value is not None}
            for one in messages
        ]
        last = ""
        if continue_final_message:
            last = str(turns[-1].get("content", ""))
            turns[-1]["content"] = last + _END
        try:
            text: str = template.render(
                self._variables,
                messages=turns,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
            )
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise ValueError(f"the chat template refuses this chat: {reason}") from None
        if not continue_final_message:
            return text
        head, end, tail = text.rpartition(_END[0])
        if not end or last.strip() not in head:
            raise ValueError("the chat template drops the message to be continued")
        return head if tail.startswith(_END[1]) else head.rstrip()

    def _choose(self, name: str | None, has_tools: bool) -> jinja2.Template:
        names = (name,) if name else ("tool_use",) * has_tools + ("default", "")
        for one in names:
            if one in self._templates:
                return self._templates[one]
        known = ", ".join(filter(None, self._templates)) or "the only one"
        raise ValueError(f"chat_template={names[0]!r} is not a template: {known}")
