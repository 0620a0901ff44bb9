"""The `jserve` command as a user meets it: in a process of its own."""

import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import unittest.mock

import pytest

from jserve import cli
from jserve.config import EngineConfig
from jserve.program import ProgramError
from jserve.records.events import StartUp
from jserve.server_config import ServerConfig

SCRIPT = "import sys; sys.argv[0] = 'jserve'; from jserve.cli import run; run()"
NOTED = """
import sys
sys.argv[0] = 'jserve'
try:
    from jserve.cli import run
    run()
finally:
    heavy = {'jax', 'flax', 'numpy', 'scipy', 'fastapi', 'msgspec', 'uvicorn'}
    import jserve, jserve.config, jserve.flags
    print('heavy:', sorted(heavy & set(sys.modules)))
"""


def command(*arguments, script=SCRIPT):
    """Runs it; a program it compiles is made in little time, and not to be fast."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )


def test_help_lists_every_flag_without_what_takes_long_to_import():
    result = command("--help", script=NOTED)
    assert result.returncode == 0
    assert "Serves a language model over HTTP" in result.stdout
    fields = [*dataclasses.fields(EngineConfig), *dataclasses.fields(ServerConfig)]
    for field in fields:
        is_listed = (
            f"--{field.name}:" in result.stdout
            or f"--[no]{field.name}:" in result.stdout
        )
        assert is_listed == (field.name != "capture_logits"), field.name
    assert "heavy: []" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--port=99999"], 1, ["port=99999", "0..65535"]),
        (["--model=/no/such/folder"], 1, ["/no/such/folder", "no such folder"]),
        (["--predictor=lineer"], 1, ["lineer", "table, auto, linear", "a checkpoint"]),
        (["--api_key_file=/dev/null"], 1, ["/dev/null", "holds no key"]),
        (
            ["--warmup_only", "--compile_cache_dir=/dev/null/cache"],
            1,
            ["compile_cache_dir='/dev/null/cache'", "'/dev/null'"],
        ),
        (["--attention=tpu"], 1, ["attention='tpu' needs a TPU", "no /dev/accel"]),
        (["--prot=1"], 2, ["prot", "port"]),
        (["serve", "now"], 2, ["serve now"]),
        (["--host=256.1.1.1", "--port=0"], 1, ["256.1.1.1"]),
    ],
)
def test_a_mistake_is_one_line(arguments, status, words):
    result = command(*arguments, script=NOTED)
    assert result.returncode == status, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("jserve: ")
    assert "jax" not in result.stdout
    for word in words:
        assert word in line


def warmup_flags(folder: pathlib.Path) -> list[str]:
    """Two programs of the toy, kept in that folder."""
    buckets = folder / "buckets.json"
    buckets.write_text(json.dumps({"row_edges": [16], "block_edges": [0, 4]}))
    return [
        *("--warmup_only", "--model=toy", f"--buckets={buckets}", "--max_num_seqs=16"),
        *("--max_num_batched_tokens=144", "--kv_cache_bytes=1048576"),
        f"--compile_cache_dir={folder / 'cache'}",
    ]


def test_warmup_only_fills_the_cache_and_opens_no_port(tmp_path: pathlib.Path):
    flags = warmup_flags(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # A port in use does not matter: it is not bound.
        flags.append(f"--port={listener.getsockname()[1]}")
        cold, warm = command(*flags), command(*flags)
    for result, source in ((cold, "6 compiled"), (warm, "6 stored")):
        assert result.returncode == 0, result.stderr
        head, *rows, total, note = result.stdout.splitlines()
        assert head.split() == [
            *["program", "trace", "s", "compile", "s", "bytes", "source"]
        ]
        names = sorted(row.split()[0] for row in rows)
        assert names == ["B16xNB0", "B16xNB4", "draw16", "head16", "sampler", "table"]
        assert total.startswith("6 programs") and total.endswith(source)
        assert "by the clock, which is jserve:compile_seconds" in note
        assert "loading model toy" in result.stderr
        assert "loading them: 6 of 6 (" in result.stderr
    assert len(list(tmp_path.rglob("step_times_*.json"))) == 1


def test_warmup_only_fails_if_it_could_not_keep_everything(monkeypatch):
    lossy = unittest.mock.Mock()
    lossy.warm_up.start_up.return_value = StartUp()
    lossy.warm_up.check_kept.side_effect = OSError("2 of 2 programs could not be kept")
    monkeypatch.setattr("jserve.build.build_loop", lambda *_, **__: lossy)
    with pytest.raises(ProgramError, match="2 of 2 programs could not be kept"):
        cli._warm_up(EngineConfig())
