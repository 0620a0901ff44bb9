"""Folders as nobody wrote them: each is loaded, or refused in one line, and soon."""

import copy
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from jserve.text.tokenizer import load_tokenizer
from jserve_models.hf import read_config
from jserve_models.hf.tensor_files import SafetensorsFiles
from tests import TESTS

GOLDEN = TESTS / "golden"
CONFIGS = sorted(one.parent for one in GOLDEN.glob("*/config.json"))
TOKENIZERS = sorted(one.parent for one in GOLDEN.glob("chats/*/tokenizer_config.json"))
VALUES: list[Any] = [
    *(
        None,
        True,
        "",
        "no",
        "\ud800",
        [],
        {},
        [[]],
        {"a": {"b": []}},
        [None],
        "9" * 400,
    ),
    *(0, -1, 1, 3, 10**12, 10**400, -(2**63), 0.0, 1e-320, 1e308, 0.5),
    *(float("nan"), float("inf")),
]
LIMIT_S = 5


def seeds(first: int, count: int) -> list[Any]:
    """The first ones are for every run."""
    return [
        pytest.param(seed, marks=[] if seed < first + 8 else pytest.mark.families)
        for seed in range(first, first + count)
    ]


@pytest.fixture(autouse=True)
def limited() -> Iterator[None]:
    """A hang is a failure, even in a system call."""

    def stop(*_: object) -> None:
        raise AssertionError(f"it takes more than {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def change(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """Replaces, removes or adds one thing somewhere in a JSON value."""
    value = copy.copy(value)
    places: list[Any] = []
    if isinstance(value, dict):
        places = list(value)
    elif isinstance(value, list):
        places = list(range(len(value)))
    if not places or (depth and rng.random() < 0.3):
        return rng.choice(VALUES)
    place, what = rng.choice(places), rng.random()
    if what < 0.15:
        del value[place]
    elif what < 0.3 and isinstance(value, dict):
        value[rng.choice((f"{place}_", "attn_logit_softcapping", "x" * 300))] = (
            rng.choice(VALUES)
        )
    else:
        value[place] = change(rng, value[place], depth + 1)
    return value


def damage(rng: random.Random, path: pathlib.Path) -> str:
    """Changes a file in place; returns what was done."""
    kind = rng.random()
    if kind < 0.85:
        try:
            value = json.loads(path.read_text())
        except ValueError:
            kind = 0.9
        else:
            path.write_text(json.dumps(change(rng, value)), errors="surrogatepass")
            return "changed"
    data = path.read_bytes()
    path.unlink()
    if kind < 0.93:
        cut = rng.randrange(len(data) + 1)
        path.write_bytes(data[:cut] + rng.choice((b"", b"\xff", b"[" * 10**5)))
        return "cut"
    what = rng.choice(("/dev/zero", "/dev/null", "pipe", "folder", "nowhere", "itself"))
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name if what == "itself" else what)
    return what


def check_refusal(error: ValueError | OSError) -> None:
    text = str(error)
    assert text and "\n" not in text.strip() and len(text) < 2000, text


def copied(source: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / source.name
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.npz"))
    return folder


@pytest.mark.parametrize("seed", seeds(0, 150))
def test_a_changed_config_is_read_or_refused(seed: int, tmp_path) -> None:
    rng = random.Random(seed)
    folder = copied(rng.choice(CONFIGS), tmp_path)
    damage(rng, folder / "config.json")
    signal.alarm(LIMIT_S)
    try:
        read_config(folder)
    except (ValueError, OSError) as error:
        check_refusal(error)


@pytest.mark.parametrize("seed", seeds(1000, 100))
def test_a_changed_tokenizer_is_read_or_refused(seed: int, tmp_path) -> None:
    rng = random.Random(seed)
    folder = copied(rng.choice(TOKENIZERS), tmp_path)
    damage(rng, rng.choice(sorted(one for one in folder.iterdir() if one.is_file())))
    signal.alarm(LIMIT_S)
    try:
        tokenizer = load_tokenizer(folder)
        tokenizer.decode(tokenizer.encode("def f(x):"))
    except (ValueError, OSError) as error:
        check_refusal(error)


@pytest.mark.parametrize("seed", seeds(2000, 50))
def test_a_changed_header_of_weights_is_read_or_refused(seed: int, tmp_path) -> None:
    rng = random.Random(seed)
    path = tmp_path / "model.safetensors"
    save_file({name: np.ones((2, 3), np.float32) for name in "abc"}, path)
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.7:
        header = json.dumps(change(rng, json.loads(data[8 : 8 + size]))).encode()
        length = rng.choice((len(header), len(header), 10**9, 0, 2**63))
        path.write_bytes(length.to_bytes(8, "little") + header + data[8 + size :])
    else:
        damage(rng, path)
    signal.alarm(LIMIT_S)
    try:
        files = SafetensorsFiles(tmp_path)
        for name in list(files.unread):
            files.raw(name).sum()
    except (ValueError, OSError) as error:
        check_refusal(error)


@pytest.mark.families
def test_the_program_refuses_them_in_a_line(tmp_path) -> None:
    num_refused = 0
    for seed in itertools.count():
        rng = random.Random(seed)
        folder = copied(rng.choice(CONFIGS), tmp_path / str(seed))
        damage(rng, folder / "config.json")
        try:
            read_config(folder)
        except (ValueError, OSError) as error:
            command = [sys.executable, "-m", "jserve", f"--model={folder}", "--port=0"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 1, done.stderr
            assert str(error) in done.stderr and "Traceback" not in done.stderr
            num_refused += 1
        if num_refused == 20:
            return
