"""Folders as people have them: linked, cached, not quite there, and on a hub."""

import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from jserve_models.hf.folders import find_folder, folder_name

FILES = {"config.json": b"{}", "model.safetensors": bytes(2000), "model.bin": b"?"}
COMMIT = "a" * 40
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def test_a_folder_is_called_what_its_user_calls_it(tmp_path, monkeypatch):
    cached = tmp_path / "hub" / "models--org--my-model" / "snapshots" / COMMIT
    cached.mkdir(parents=True)
    (tmp_path / "linked").symlink_to(cached)
    assert folder_name(cached) == "org/my-model"
    assert folder_name(tmp_path / "linked") == "linked"
    monkeypatch.chdir(cached.parent.parent.parent)
    assert folder_name(pathlib.Path(".")) == "hub"


def test_what_stands_in_place_of_a_file_is_called_that(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_text(POINTER)
    with pytest.raises(ValueError, match=rf"{weights} is a Git LFS pointer.* lfs pull"):
        find_folder(str(tmp_path))
    weights.unlink()
    weights.symlink_to("../../blobs/gone")
    with pytest.raises(ValueError, match=r"is a link to \.\./\.\./blobs/gone, which"):
        find_folder(str(tmp_path))
    weights.unlink()
    assert find_folder(str(tmp_path)) == tmp_path
    assert find_folder(str(tmp_path / "none")) is find_folder("none") is None


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub answers for org/name."""

    def do_GET(self):
        name = self.path.partition("?")[0].removeprefix(f"/org/name/resolve/{COMMIT}/")
        rows = [{"type": "file", "path": one, "size": 1, "oid": "b"} for one in FILES]
        if self.path.startswith("/api/models/org/name/revision/"):
            self.answer({"id": "org/name", "sha": COMMIT, "siblings": []})
        elif self.path.startswith("/api/models/org/name/tree/"):
            self.answer(rows)
        elif name in FILES:
            self.answer(FILES[name])
        else:
            self.answer({"error": "Repository not found"}, 404)

    do_HEAD = do_GET

    def answer(self, value, status=200):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (
            ("Content-Length", len(data)),
            ("ETag", f'"{len(data)}"'),
            ("X-Repo-Commit", COMMIT),
            ("X-Error-Code", "RepoNotFound"),
        ):
            self.send_header(name, str(text))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


SCRIPT = """
import sys
from jserve_models.hf.folders import find_folder
for name in sys.argv[1:]:
    try:
        print(find_folder(name))
    except ValueError as error:
        print(error)
"""


def test_a_name_of_the_hub_is_downloaded_once_and_served_without_it(tmp_path):
    hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
    }

    def find(*names):
        command = [sys.executable, "-c", SCRIPT, *names]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), done.stderr

    (folder, refusal), progress = find("org/name", "org/other")
    assert "Fetching 2 files" in progress
    hub.shutdown()
    hub.server_close()
    assert folder_name(pathlib.Path(folder)) == "org/name"
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert "model='org/other' is not a folder" in refusal and "404" in refusal
    assert find("org/name")[0] == [folder]
    (pathlib.Path(folder) / "model.safetensors").unlink()
    ((refusal,), _) = find("org/name")
    for words in ("`hf download org/name` fills", str(tmp_path), "model.safetensors"):
        assert words in refusal
