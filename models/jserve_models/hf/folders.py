"""Finds the folder of a model: on this machine, in the hub's cache, or on the hub."""

import functools
import os
import pathlib
import re

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_HUB_FILES = ["*.json", "*.jinja", "*.model", "merges.txt", "model*.safetensors"]
_OTHER_FORMS = ["onnx/*", "original/*"]
_MAX_REASON_CHARS = 300
_POINTER, _POINTER_BYTES = b"version https://git-lfs", 1024  # at most


def folder_name(folder: pathlib.Path) -> str:
    """Returns the name of a folder's model: that on the hub, if it is in its cache."""
    path = pathlib.Path(os.path.abspath(folder))  # a link has its own name
    for part in path.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    return path.name


def find_folder(model: str) -> pathlib.Path | None:
    """Returns the folder of a model; None if `model` is not the name of any.

    Args:
      model: Path of a folder or of a GGUF file, or ORG/NAME of the Hugging Face hub,
        whose files are downloaded into its cache if they are not there.

    Raises:
      ValueError: If the model cannot be had from the hub, or the folder holds links
        or Git LFS pointers in place of files.
    """
    folder = pathlib.Path(model).expanduser()
    if folder.suffix == ".gguf" and folder.is_file():
        from jserve_models.hf.gguf_files import gguf_folder  # takes a while

        return gguf_folder(folder)
    if not folder.is_dir():
        if not _HUB_NAME.fullmatch(model):
            return None
        folder = _download(model)
    for path in folder.iterdir():
        if path.is_symlink() and not path.exists():
            raise ValueError(f"{path} is a link to {path.readlink()}, which is missing")
        is_small = path.is_file() and path.stat().st_size < _POINTER_BYTES
        if is_small and path.read_bytes().startswith(_POINTER):
            raise ValueError(
                f"{path} is a Git LFS pointer in place of the file: run `git lfs "
                f"install && git lfs pull` in {folder}"
            )
    return folder


@functools.cache
def _download(model: str) -> pathlib.Path:
    """Returns the folder in the hub's cache; what it lacks is downloaded.

    Raises:
      ValueError: If files are missing and cannot be downloaded.
    """
    import huggingface_hub  # takes a while

    try:
        found = huggingface_hub.snapshot_download(
            model, allow_patterns=_HUB_FILES, ignore_patterns=_OTHER_FORMS
        )
    except Exception as error:  # of the network, of the hub, of the cache
        why = " ".join(str(error).split())[:_MAX_REASON_CHARS]
        raise ValueError(
            f"model={model!r} is not a folder, and the hub does not give it; `hf "
            f"download {model}` fills {huggingface_hub.constants.HF_HUB_CACHE} where "
            f"the hub can be reached: {why}"
        ) from None
    return pathlib.Path(found)
