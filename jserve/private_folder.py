"""Folders from which code is loaded: their owner's alone."""

import os
import pathlib
import stat


class UntrustedFolderError(OSError):
    """A folder from which code would be loaded can be written by other users."""


def make_private_folder(folder: pathlib.Path) -> None:
    """Makes a folder for its owner alone, or checks that one that is there is safe.

    Raises:
      UntrustedFolderError: if it belongs to another user than this one or root, or
        if others may write to it.
      OSError: if it cannot be made.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = folder.stat()
    if facts.st_uid not in (os.geteuid(), 0):
        raise UntrustedFolderError(
            f"{folder} belongs to user {facts.st_uid}, not to {os.geteuid()}: code is "
            "not loaded from it"
        )
    if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UntrustedFolderError(
            f"{folder} may be written by others (mode {facts.st_mode & 0o777:o}): code "
            "is not loaded from it; chmod go-w makes it safe"
        )
