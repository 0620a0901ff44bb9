"""Folders in Hugging Face's form: what a `config.json` means, and its weights."""

from jserve_models.hf.config import read_config
from jserve_models.hf.families import FAMILIES
from jserve_models.hf.keys import read_json

__all__ = ["FAMILIES", "read_config", "read_json"]
