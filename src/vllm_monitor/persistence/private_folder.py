"""Folders that only their owner may enter."""

from __future__ import annotations

from pathlib import Path

__all__ = ["make_private_folder"]


def make_private_folder(folder: Path) -> None:
    """Make a folder that only its owner may enter, with those above it.

    Raises:
        OSError: When it cannot be made.
    """
    missing = [one for one in folder.parents if not one.exists()]
    for one in reversed(missing):  # mkdir would make those above with the mode that the umask leaves
        one.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
