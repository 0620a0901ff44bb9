"""Every flag of every program, given what it cannot be."""

import json
import pathlib
import subprocess
import sys
import tomllib

import pytest

from tests import ROOT

# Gives each flag each value, alone. A value is accepted if it is not refused before
# slow work begins, which is when one of these modules is imported.
WALK = """
import contextlib, importlib, io, json, sys
from absl import flags
from jserve import program

SLOW = ("jax", "jserve_tools.measuring.benchmark", "jserve_tools.simulating.sweep")

class Accepted(BaseException):
    pass

class Gate:
    def find_spec(self, name, *_):
        if name in SLOW:
            raise Accepted

def end_of(call):
    try:
        call()
    except Accepted:
        return "accepted"
    except SystemExit as end:
        return end.code
    except BaseException as error:
        return repr(error)

sys.meta_path.insert(0, Gate())
name, where, others, values = sys.argv[1], sys.argv[2], sys.argv[4:], sys.argv[3]
sys.argv[:] = [name]
main = importlib.import_module(where).main
groups = flags.FLAGS.flags_by_module_dict()
own = [one for group in groups for one in groups[group] if group[:4] != "absl"]
for flag in own:
    for value in json.loads(values):
        for one in flags.FLAGS:
            flags.FLAGS[one].unparse()
        argument = f"--{flag.name}={value}"
        text = io.StringIO()
        with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
            arguments = [name, *others, argument]
            end = end_of(lambda: program._guard(main, program._parse(arguments)))
        is_number = isinstance(flag.default, (int, float))
        print(json.dumps([flag.name, value, is_number, end, text.getvalue()]))
"""
NOT_NUMBERS = ["x", "", "nan"]
VALUES = [*NOT_NUMBERS, "-1", "1e400", "99999999999999999999", "/dev/null/file"]
UNBOUNDED = {"seed"}
PROGRAMS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
NEEDED = {
    "jserve-convert": ["--model=other", "--output=converted"],
    "jserve-fit-buckets": ["--step_log=no.jsonl"],
    "jserve-train-predictor": ["--step_log=no.jsonl"],
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_a_flag_cannot_be_is_refused_in_a_line_that_names_it(
    program: str, tmp_path: pathlib.Path
) -> None:
    where = PROGRAMS[program].split(":")[0]
    needed = NEEDED.get(program, [])
    walk = subprocess.run(
        [sys.executable, "-c", WALK, program, where, json.dumps(VALUES), *needed],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
    )
    assert walk.returncode == 0, walk.stderr
    accepted: dict[str, set[str]] = {}
    numbers = set()
    for line in walk.stdout.splitlines():
        name, value, is_number, end, text = json.loads(line)
        if is_number:
            numbers.add(name)
        if end == "accepted":
            accepted.setdefault(name, set()).add(value)
            continue
        assert end in (1, 2), (name, value, end)
        assert text.startswith(f"{program}: ") and text.count("\n") == 1, text
        given = name, value, *(one.split("=")[1] for one in needed)
        is_named = any(one and one in text for one in given)
        assert is_named or not value, (name, value, text)
    assert numbers or program == "jserve-convert"
    for name in numbers:
        assert not accepted.get(name, set()) & {*NOT_NUMBERS, "1e400"}, name
        too_large = "99999999999999999999" in accepted.get(name, set())
        assert not too_large or name in UNBOUNDED, name
