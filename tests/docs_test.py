"""What the guide names is there: flags, extras, files."""

import dataclasses
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from jserve.config import EngineConfig
from jserve.engine.cluster import ProcessConfig
from jserve.server_config import ServerConfig
from tests import ROOT

DOCKERFILE = ROOT / "deploy/Dockerfile"
UNIT = ROOT / "deploy/jserve.service"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), DOCKERFILE, UNIT]
CONFIGS = (EngineConfig, ProcessConfig, ServerConfig)
FLAGS = {"warmup_only"} | {
    field.name for config in CONFIGS for field in dataclasses.fields(config)
}
OTHERS = {  # flags of other programs that the pages call
    *("build-arg", "gpus", "publish", "volume", "privileged", "net", "user"),  # docker
    *("create-home", "uid", "start-period"),  # in the Dockerfile
    *("system", "now"),  # systemd
    *("no-cache-dir", "no-deps", "constraint", "requirement"),  # pip
    *("local-dir", "seed", "python", "accelerator-type", "version"),  # hf, uv, gcloud
    *("worker", "command"),  # gcloud
    *("url", "load"),  # jserve-bench
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_what_exists(page: pathlib.Path) -> None:
    text = page.read_text()
    flags = set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", text))
    assert flags and flags <= FLAGS | OTHERS
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert set(re.findall(r"(?:'\.\[|EXTRA=)(\w+)", text)) <= set(extras)
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    files = re.findall(r"\b(?:constraints|deploy)/[\w./]+\w", text)
    for path in [*(page.parent / one for one in links), *map(ROOT.joinpath, files)]:
        assert path.exists(), path


@pytest.mark.parametrize("extra", ["", "cuda", "tpu"])
def test_an_image_gets_all_dependencies_before_the_code(extra: str) -> None:
    assert "python requirements.py $EXTRA" in DOCKERFILE.read_text()
    printed = subprocess.run(
        [sys.executable, "deploy/requirements.py", *extra.split()],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout.splitlines()
    assert any(one.startswith("fastapi>=") for one in printed)
    jax = [one for one in printed if one.startswith("jax[")]
    assert jax == {"": [], "cuda": ["jax[cuda13]"], "tpu": ["jax[tpu]"]}[extra]
