"""Looks at the packages of another interpreter. Its source is what that interpreter is given with ``-c``.

It imports nothing but the standard library, so that it takes a second and not the minute that ``import vllm`` takes.
"""

import ast
import importlib.metadata
import importlib.util
import json
import pathlib
import sys

sys.path[:] = [folder for folder in sys.path if folder]
_WANTED = {"torch", "transformers", "torchaudio", "torchvision", "torchcodec", "vllm-monitor", "vllm-monitor-engine"}


def _known_variables() -> "list[str] | None":
    """The variables that this vLLM knows, read from the source of ``vllm/envs.py`` without running it."""
    found = importlib.util.find_spec("vllm")
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        tree = ast.parse((pathlib.Path(folder) / "envs.py").read_text(encoding="utf-8"))
        for node in tree.body:
            target = getattr(node, "target", None) or (getattr(node, "targets", None) or [None])[0]
            value = getattr(node, "value", None)
            if getattr(target, "id", "") == "environment_variables" and isinstance(value, ast.Dict):
                return [key.value for key in value.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
    return None


def _look() -> "dict[str, object]":
    versions: dict[str, str] = {}
    servers: list[list[str]] = []
    plugins: list[list[str]] = []
    for one in importlib.metadata.distributions():
        name = str(one.metadata["Name"] or "").lower().replace("_", "-")
        entries = [entry for entry in one.entry_points if entry.group.startswith("vllm.")]
        is_server = name == "vllm" or (
            name.startswith("vllm-")
            and any(f.group == "console_scripts" and f.name == "vllm" for f in one.entry_points)
        )
        if is_server and [name, one.version] not in servers:
            servers.append([name, one.version])
        if name in _WANTED:
            versions.setdefault(name, one.version)
        plugins += [[entry.group, entry.name, name] for entry in entries]
    try:
        known = _known_variables()
    except (OSError, SyntaxError, ValueError):
        known = None
    return {
        "python": sys.version.split()[0],
        "executable": sys.executable,
        "servers": servers,
        "versions": versions,
        "plugins": sorted(map(list, {tuple(one) for one in plugins})),
        "known_variables": known,
    }


if __name__ == "__main__":
    print(json.dumps(_look()))
