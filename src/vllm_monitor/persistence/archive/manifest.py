"""The manifest of an archive: what is in it, and the checksums of its files.

An archive is a folder::

    manifest.json            this module
    monitor.db               a store of the same schema, with blocks and records but no unsealed rows
    guardrails.json          documents, as the HYBRID backend keeps them
    plugins.json
    strategies.json
    models/NAME.safetensors  the arrays of models (``.safetensors.zlib`` where they are compressed)

``manifest.json`` is a JSON object with the fields of :class:`Manifest`, ``format`` and ``version``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from vllm_monitor.errors import ArchiveError

__all__ = ["DATABASE_NAME", "DOCUMENT_NAMES", "MANIFEST_NAME", "MODELS_FOLDER", "FileEntry", "Manifest"]

MANIFEST_NAME = "manifest.json"
DATABASE_NAME = "monitor.db"
DOCUMENT_NAMES = ("guardrails.json", "plugins.json", "strategies.json")
MODELS_FOLDER = "models"

LARGEST_MANIFEST_BYTES = 16 << 20
_FORMAT = "vllm-monitor-archive"
_VERSION = 1
_MOST_FILES = 100_000
_LARGEST_FILE_BYTES = 1 << 44
_LARGEST_DOCUMENT_BYTES = 256 << 20
_MODEL_FILE = re.compile(r"models/[A-Za-z0-9_-]{1,110}\.safetensors(?:\.zlib)?", re.ASCII)
_LATEST_SECONDS = 1e300
_REVISION = re.compile(r"[0-9]{4}", re.ASCII)
_STORE_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HINT = "Nothing was imported. Make the archive again with vllm-monitor export, or fetch another copy of it."


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of an archive.

    Args:
        name: Path below the folder, with ``/``.
        size_bytes: Its length.
        sha256: Of its content, hexadecimal.
    """

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an archive says of itself.

    Args:
        schema: Schema revision of the database.
        store_id: The store that was exported.
        created_at: Unix seconds.
        created_by: Program and version.
        start_time: Unix seconds from which on records and samples are in it; ``None`` is from the beginning.
        end_time: Up to which; ``None`` is to the end.
        counts: What is in it, by type.
        files: Every file but the manifest.
    """

    schema: str
    store_id: str
    created_at: float
    created_by: str
    start_time: float | None
    end_time: float | None
    counts: Mapping[str, int]
    files: tuple[FileEntry, ...]

    def to_bytes(self) -> bytes:
        """The content of ``manifest.json``."""
        facts = {"format": _FORMAT, "version": _VERSION, **asdict(self)}
        return (json.dumps(facts, indent=2) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """The manifest that :meth:`to_bytes` wrote. Fields that a later version adds are ignored.

        Raises:
            ArchiveError: When it is no manifest, or names what no archive holds.
        """
        try:
            facts = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ArchiveError("manifest.json is no JSON", hint=_HINT) from error
        if not isinstance(facts, dict) or facts.get("format") != _FORMAT:
            raise ArchiveError("manifest.json is not that of an archive of vllm-monitor", hint=_HINT)
        if facts.get("version") != _VERSION:
            raise ArchiveError(
                f"the archive has format {facts.get('version')!r}, this version of vllm-monitor knows {_VERSION}",
                hint="Upgrade vllm-monitor, then import it again.",
            )
        entries = _checked(facts, "files", list)
        if len(entries) > _MOST_FILES:
            raise ArchiveError(f"the manifest lists {len(entries)} files", hint=_HINT)
        counts = _checked(facts, "counts", dict)
        if not all(type(number) is int for number in counts.values()):
            raise ArchiveError("the counts of the manifest are no numbers", hint=_HINT)
        manifest = cls(
            schema=_matching(facts, "schema", _REVISION),
            store_id=_matching(facts, "store_id", _STORE_ID),
            created_at=_time(_checked(facts, "created_at", int, float)),
            created_by=str(_checked(facts, "created_by", str))[:100],
            start_time=_time(_checked(facts, "start_time", int, float, type(None))),
            end_time=_time(_checked(facts, "end_time", int, float, type(None))),
            counts=counts,
            files=tuple(_entry(entry) for entry in entries),
        )
        names = [entry.name for entry in manifest.files]
        if len(set(names)) != len(names) or DATABASE_NAME not in names:
            raise ArchiveError(f"the manifest lists a file twice, or no {DATABASE_NAME}", hint=_HINT)
        return manifest


def _entry(entry: Any) -> FileEntry:
    if not isinstance(entry, dict):
        raise ArchiveError("a file of the manifest is no object", hint=_HINT)
    name = _checked(entry, "name", str)
    if name != DATABASE_NAME and name not in DOCUMENT_NAMES and not _MODEL_FILE.fullmatch(name):
        raise ArchiveError(f"the manifest lists {name[:200]!r}, which no archive holds", hint=_HINT)
    size_bytes = _checked(entry, "size_bytes", int)
    most = _LARGEST_DOCUMENT_BYTES if name in DOCUMENT_NAMES else _LARGEST_FILE_BYTES
    if not 0 <= size_bytes <= most:
        raise ArchiveError(f"{name} claims {size_bytes} bytes, at most {most} are read", hint=_HINT)
    return FileEntry(name, size_bytes, _matching(entry, "sha256", _SHA256))


def _checked(facts: dict[str, Any], name: str, *kinds: type) -> Any:
    value = facts.get(name)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise ArchiveError(f"{name} of the manifest is {type(value).__name__}", hint=_HINT)
    return value


_Time = TypeVar("_Time", float, float | None)


def _time(value: _Time) -> _Time:
    """A time as float; whole numbers in JSON may be larger than any."""
    if value is None:
        return value
    if not abs(value) < _LATEST_SECONDS:
        raise ArchiveError("the manifest names a time that is none", hint=_HINT)
    return float(value)


def _matching(facts: dict[str, Any], name: str, form: re.Pattern[str]) -> str:
    text: str = _checked(facts, name, str)
    if not form.fullmatch(text):
        raise ArchiveError(f"{name} of the manifest cannot be {text[:100]!r}", hint=_HINT)
    return text
