"""The files of an archive: described when it is written, held against the manifest before anything is read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from vllm_monitor.errors import ArchiveError
from vllm_monitor.persistence.archive.manifest import (
    LARGEST_MANIFEST_BYTES,
    MANIFEST_NAME,
    MODELS_FOLDER,
    FileEntry,
    Manifest,
)

__all__ = ["describe_files", "is_archive", "read_manifest", "verify_files"]

_CHUNK_BYTES = 1 << 20
_HINT = "Nothing was imported. Make the archive again with vllm-monitor export, or fetch another copy of it."


def describe_files(folder: Path) -> tuple[FileEntry, ...]:
    """Every file in a folder and the one level below it, with its checksum."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(FileEntry(name, (folder / name).stat().st_size, _sha256_of(folder / name)) for name in names)


def is_archive(folder: Path) -> bool:
    """Whether a folder has a manifest of ours."""
    try:
        read_manifest(folder)
    except ArchiveError:
        return False
    return True


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an archive.

    Raises:
        ArchiveError: When the folder is no archive, or its manifest is not what one must be.
    """
    path = folder / MANIFEST_NAME
    if not os.path.lexists(path):
        raise ArchiveError(
            f"{folder} has no {MANIFEST_NAME}, so it is no archive",
            hint="Give the folder that vllm-monitor export wrote.",
        )
    descriptor = _open_plain(path)
    try:
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(LARGEST_MANIFEST_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(data) > LARGEST_MANIFEST_BYTES:
        raise ArchiveError(f"{path} is larger than any manifest", hint=_HINT)
    return Manifest.parse(data)


def verify_files(folder: Path, manifest: Manifest, on_bytes: Callable[[int], None]) -> None:
    """Hold every file against the manifest: none more, none less, none that is not a plain file.

    Args:
        folder: The archive.
        manifest: Its manifest.
        on_bytes: Told how many bytes were read, again and again.

    Raises:
        ArchiveError: At the first that is not as it must be.
    """
    listed = {entry.name for entry in manifest.files}
    for name in _names_in(folder):
        if name != MANIFEST_NAME and name not in listed:
            raise ArchiveError(f"the archive holds {name[:200]!r}, which its manifest does not list", hint=_HINT)
    for entry in manifest.files:
        path = folder / entry.name
        found_bytes, found = _digest(path, entry.size_bytes, on_bytes)
        if found_bytes != entry.size_bytes:
            raise ArchiveError(
                f"{entry.name} has {found_bytes} bytes or more, its manifest says {entry.size_bytes}", hint=_HINT
            )
        if found != entry.sha256:
            raise ArchiveError(f"{entry.name} does not match its checksum", hint=_HINT)


def _names_in(folder: Path) -> Iterator[str]:
    """What is in an archive's folder and in that of its models; links and all else that is no file are refused."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name == MODELS_FOLDER and entry.is_dir(follow_symlinks=False):
                    with os.scandir(entry.path) as models:
                        for model in models:
                            yield _plain_name(model, f"{MODELS_FOLDER}/{model.name}")
                else:
                    yield _plain_name(entry, entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from error


def _plain_name(entry: os.DirEntry[str], name: str) -> str:
    if not entry.is_file(follow_symlinks=False):
        raise ArchiveError(f"{name[:200]!r} in the archive is no plain file", hint=_HINT)
    return name


def _open_plain(path: Path) -> int:
    """Open a file without following links and without waiting for a device or a pipe."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ArchiveError(f"{path} is no plain file", hint=_HINT)
    return descriptor


def _digest(path: Path, most_bytes: int, on_bytes: Callable[[int], None]) -> tuple[int, str]:
    """Length and checksum of a file; reading stops behind ``most_bytes``."""
    digest = hashlib.sha256()
    seen = 0
    try:
        with os.fdopen(_open_plain(path), "rb", buffering=0) as file:
            while seen <= most_bytes and (chunk := file.read(_CHUNK_BYTES)):
                digest.update(chunk)
                seen += len(chunk)
                on_bytes(len(chunk))
    except OSError as error:
        raise _unreadable(path, error) from error
    return seen, digest.hexdigest()


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreadable(path: Path, error: OSError) -> ArchiveError:
    return ArchiveError(f"{path} cannot be read: {error.strerror or error}", hint=_HINT)
