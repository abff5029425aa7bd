"""Plugins that other packages bring, as entry points of ``vllm_monitor.plugins``; looked at without importing."""

from __future__ import annotations

import hashlib
import logging
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

__all__ = ["GROUP", "InstalledPlugin", "installed_plugins", "sha256_of_package"]

_log = logging.getLogger(__name__)

GROUP = "vllm_monitor.plugins"
_CODE = (".py", ".pyc", ".so", ".pth")


@dataclass(frozen=True, slots=True)
class InstalledPlugin:
    """A module of an installed package that says it is a plugin.

    Args:
        name: The name of its entry point.
        module: The module.
        distribution: The package and its version, for a person.
        sha256: Of all code of the module's top-level package; what trust in it goes by.
        source: The text of the module, in which it declares itself.
    """

    name: str
    module: str
    distribution: str
    sha256: str
    source: str


def installed_plugins() -> dict[str, InstalledPlugin]:
    """All that are installed, by name; what cannot be found or read is left out, and logged."""
    found: dict[str, InstalledPlugin] = {}
    for entry in metadata.entry_points(group=GROUP):
        try:
            where = _found(entry.module)
            if where is None:
                continue
            file, _ = where
            source, digest = file.read_text(encoding="utf-8"), sha256_of_package(entry.module)
            distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
        except Exception as error:  # an entry point may be anything; it must not keep the others away
            _log.warning("the plugin %r that a package brings cannot be looked at: %r", entry.name, error)
            continue
        found[entry.name] = InstalledPlugin(entry.name, entry.module, distribution, digest, source)
    return found


def sha256_of_package(module: str) -> str:
    """Of all code of the top-level package of a module, in every place where it is; empty when it cannot be found."""
    where = _found(module)
    if where is None:
        return ""
    file, places = where
    digest = hashlib.sha256()
    if not places:  # a module on its own
        digest.update(file.read_bytes())
        return digest.hexdigest()
    for place in places:
        top = Path(place)
        # Byte code in __pycache__ comes and goes, and is not what the plugin's process runs.
        files = (path for path in top.rglob("*") if path.suffix in _CODE and "__pycache__" not in path.parts)
        for path in sorted(files):
            data = path.read_bytes()
            digest.update(f"{path.relative_to(top)}\0{len(data)}\0".encode())
            digest.update(data)
    return digest.hexdigest()


def _found(module: str) -> tuple[Path, list[str]] | None:
    """The file of a module, and the folders of its top-level package; without importing any of it."""
    places: list[str] | None = [entry for entry in sys.path if entry]
    top: list[str] = []
    file: str | None = None
    name = ""
    for number, part in enumerate(module.split(".")):
        if places is None:
            return None
        name = f"{name}.{part}" if number else part
        spec = PathFinder.find_spec(part, places)  # by its own name: a full one would ask for its parents' modules
        if spec is None:
            return None
        file = spec.origin
        places = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
        if not number:
            top = places or []
    return (Path(file), top) if file and file.endswith(".py") else None
