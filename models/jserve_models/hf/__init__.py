"""Folders in Hugging Face's form: where they are, and their weights."""

__all__ = ["folders", "weights"]
