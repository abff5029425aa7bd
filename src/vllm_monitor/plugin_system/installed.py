"""Plugins that other packages bring, as entry points of ``vllm_monitor.plugins``; looked at without importing."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path

__all__ = ["GROUP", "InstalledPlugin", "installed_plugins"]

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
    """All that are installed, by name; those whose files cannot be found or read are left out."""
    found: dict[str, InstalledPlugin] = {}
    for entry in metadata.entry_points(group=GROUP):
        file = _file_of(entry.module)
        if file is None:
            continue
        try:
            source = file.read_text(encoding="utf-8")
            digest = _sha256_of_code(file, entry.module)
        except (OSError, ValueError):
            continue
        distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else ""
        found[entry.name] = InstalledPlugin(entry.name, entry.module, distribution, digest, source)
    return found


def _file_of(module: str) -> Path | None:
    """Where a module is, without importing the packages that it is in."""
    places: list[str] | None = [entry for entry in sys.path if entry]
    file: str | None = None
    spec = None
    for number, part in enumerate(module.split(".")):
        if number and places is None:
            return None
        name = ".".join(module.split(".")[: number + 1])
        spec = PathFinder.find_spec(name if number else part, places)
        if spec is None:
            return None
        file, places = spec.origin, spec.submodule_search_locations
    return Path(file) if file and file.endswith(".py") else None


def _sha256_of_code(file: Path, module: str) -> str:
    parts = module.split(".")
    is_package = file.name == "__init__.py"
    depth = len(parts) - (0 if is_package else 1)
    digest = hashlib.sha256()
    if depth == 0:  # a module on its own
        digest.update(file.read_bytes())
        return digest.hexdigest()
    top = file.parents[depth - 1]
    for path in sorted(path for path in top.rglob("*") if path.suffix in _CODE and "__pycache__" not in path.parts):
        data = path.read_bytes()
        digest.update(f"{path.relative_to(top)}\0{len(data)}\0".encode())
        digest.update(data)
    return digest.hexdigest()
