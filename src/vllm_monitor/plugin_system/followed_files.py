"""Files of plugins: reading them, and noticing when one that is followed has changed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from vllm_monitor.errors import ConfigurationError
from vllm_monitor.plugin_system.declaration import MOST_SOURCE_BYTES

__all__ = ["FollowedFiles", "read_source"]


def read_source(path: Path, *, follow: bool = False) -> str:
    """The text of a plugin's file.

    Args:
        path: The file.
        follow: Its later contents are trusted, too, so nobody else may be able to write it.

    Raises:
        ConfigurationError: When it cannot be read, is no text, or may be written by others.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ConfigurationError(f"{path} is no plain file", hint="give the path of a Python file")
            if follow and (facts.st_uid not in (os.geteuid(), 0) or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
                raise ConfigurationError(
                    f"{path} can be written by others, so it is not followed",
                    hint=f"chmod go-w {path}, or leave --follow out",
                )
            data = file.read(4 * MOST_SOURCE_BYTES)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}", hint="check the path") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8: {error}", hint="give the path of a Python file") from error


class FollowedFiles:
    """Remembers how followed files looked. Not thread-safe: one owner."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int, int]] = {}

    def changed(self, followed: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
        """The files, with the names of their plugins, that look otherwise than at the last look, or are new here."""
        self._seen = {path: look for path, look in self._seen.items() if path in followed}
        for path, name in followed.items():
            try:
                facts = Path(path).stat()
            except OSError:
                continue  # it is being replaced, or has gone: the plugin that was read from it runs on
            look = (facts.st_mtime_ns, facts.st_size, facts.st_ino)
            if self._seen.get(path) != look:
                self._seen[path] = look
                yield Path(path), name
