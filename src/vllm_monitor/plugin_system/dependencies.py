"""Which plugin must run before which, and whether it can."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import InvalidVersion, Version

from vllm_monitor.errors import PluginError

__all__ = ["check_dependencies", "load_order", "parse_dependency"]


def parse_dependency(text: str, name: str) -> Requirement:
    """A dependency: ``other``, or ``other>=1.2,<2``.

    Raises:
        PluginError: When it is neither.
    """
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        requirement = None
    if requirement is None or requirement.url or requirement.marker or requirement.extras:
        raise PluginError(
            f"plugin {name}: {text!r} is no dependency", hint="write the name of a plugin, or name>=1.2,<2"
        )
    return requirement


def check_dependencies(name: str, dependencies: Iterable[str], versions: Mapping[str, str]) -> None:
    """Whether the plugins that one needs are there, in a version that will do.

    Args:
        name: Whose they are.
        dependencies: What it needs.
        versions: Name to version of every plugin that there is.

    Raises:
        PluginError: When one is missing, or its version will not do; it names both.
    """
    for text in dependencies:
        wanted = parse_dependency(text, name)
        if wanted.name not in versions:
            near = difflib.get_close_matches(wanted.name, versions, n=1)
            raise PluginError(
                f"plugin {name} needs {wanted.name}, which is not there",
                hint=f"did you mean {near[0]}?" if near else f"add {wanted.name} first",
            )
        if not wanted.specifier:
            continue
        found = versions[wanted.name]
        try:
            will_do = wanted.specifier.contains(Version(found), prereleases=True)
        except InvalidVersion:
            will_do = False
        if not will_do:
            raise PluginError(
                f"plugin {name} needs {text}, but {wanted.name} is {found or 'of no version'}",
                hint=f"add a version of {wanted.name} that will do, or change what {name} needs",
            )


def load_order(dependencies: Mapping[str, Iterable[str]]) -> tuple[list[str], dict[str, str]]:
    """The order in which plugins are loaded: each after those that it needs, else by name.

    Args:
        dependencies: Name to the names that it needs; those that are not keys are ignored.

    Returns:
        The names in order, and for each that is part of a circle, what the circle is.
    """
    known = {name: {one for one in needed if one in dependencies} for name, needed in sorted(dependencies.items())}
    circles: dict[str, str] = {}
    while True:
        try:
            order = list(TopologicalSorter(known).static_order())
        except CycleError as error:
            circle: list[str] = error.args[1]  # the first is named again at the end, each needed by the next
            words = " needs ".join(reversed(circle))
            for name in circle:
                if name in known:
                    circles[name] = words
                    known[name] = set()
            continue
        return [*order], circles
