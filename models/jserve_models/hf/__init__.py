"""Folders in Hugging Face's form: where they are, what they say, their weights."""

from jserve_models.hf.config import read_config
from jserve_models.hf.families import FAMILIES
from jserve_models.hf.keys import read_json

__all__ = ["FAMILIES", "read_config", "read_json"]
