"""Runs a program with absl flags, and reports a user's mistake in one line.

`--help` prints the docstring of the program's module and lists the flags by group: the
flags of each config dataclass under its heading.
"""

import logging
import os
import pathlib
import sys
import types
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from absl import app, flags

import jserve

T = TypeVar("T")
_HELP_ARGUMENTS = {"--help", "-help", "-h", "-?", "--helpshort", "-helpshort"}
_HELP_END = """
Also:
  --flagfile=FILE  Read flags from a file, one a line.
  --version        Show the version.
  --helpfull       Show the flags of the libraries too.
"""


class ProgramError(Exception):
    """A mistake of the user, reported in one line; the exit status is 1."""


def _fail(message: object, exit_code: int) -> NoReturn:
    name = os.path.basename(sys.argv[0])
    text = " ".join(str(message).split())
    print(f"{name}: {text}", file=sys.stderr, flush=True)
    sys.exit(exit_code)


def _help(introduction: str) -> str:
    """Returns the text of `--help`: introduction and flags, without those of absl."""
    groups = [
        flags.FLAGS.module_help(group)
        for group in flags.FLAGS.flags_by_module_dict()
        if not group.startswith("absl")
    ]
    return "\n\n".join([introduction.strip(), *map(str.strip, groups), _HELP_END])


def _parse(arguments: Sequence[str]) -> list[str]:
    given = set(arguments[1:])
    if given & _HELP_ARGUMENTS:
        try:
            print(_help(sys.modules["__main__"].__doc__ or ""), flush=True)
        except BrokenPipeError:  # as `| head` does; there is nobody to tell
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    if given & {"--version", "-version"}:
        print(f"jserve {jserve.__version__}")
        sys.exit(0)
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        _fail(f"{error} (--help lists the flags)", 2)
    except SystemExit:  # --helpfull was printed, which absl ends with a failure
        sys.exit(0)


def _guard(main: Callable[[Sequence[str]], object], arguments: Sequence[str]) -> None:
    if len(arguments) > 1:
        _fail(f"takes flags only, got {' '.join(arguments[1:])!r}", 2)
    try:
        status = main(arguments)
    except (app.UsageError, ProgramError) as error:
        logging.getLogger(__name__).debug("the mistake came from", exc_info=True)
        _fail(error, 2 if isinstance(error, app.UsageError) else 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    sys.stdout.flush()
    sys.exit(status if isinstance(status, int) else 0)


def run_program(module: types.ModuleType) -> NoReturn:
    """Parses flags, calls `module.main(argv)` and exits with the status it returns.

    Arguments other than flags are refused. An invalid flag or an `app.UsageError` ends
    the program with status 2, a `ProgramError` with 1, each with one line on stderr.
    `--help` begins with the module's docstring.
    """
    sys.modules["__main__"].__doc__ = module.__doc__
    app.run(
        lambda arguments: _guard(module.main, arguments),
        flags_parser=_parse,
    )
    raise AssertionError("app.run does not return")


def read_setting(name: str, path: pathlib.Path, parse: Callable[[str], T]) -> T:
    """Returns what a setting's file contains.

    Raises:
      ValueError: If it cannot be read or parsed, naming setting and file.
    """
    try:
        return parse(path.read_text(encoding="utf-8-sig"))  # as Windows writes it
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{name}={str(path)!r}: {error}") from None
