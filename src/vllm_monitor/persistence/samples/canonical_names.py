"""Canonical metric names as an alias layer: which names on a page one of them stands for.

Samples are stored under the names of the page. A question may use the canonical name instead, which is the same for all
versions of vLLM (``records.vocabulary``); a name that is on pages itself means just that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from vllm_monitor.records.vocabulary import FAMILIES, Family, Kind

__all__ = ["PageNames", "page_names"]


class PageNames(NamedTuple):
    """What a canonical name stands for.

    Args:
        names: Names on a page.
        label: Only series whose label ``label[0]`` has a value that begins with one of ``label[1]``; ``None`` is all.
    """

    names: frozenset[str]
    label: tuple[str, tuple[str, ...]] | None

    def takes(self, metric_name: str, tags: Mapping[str, Any]) -> bool:
        """Whether a series counts for the canonical name."""
        if metric_name not in self.names:
            return False
        return self.label is None or str(tags.get(self.label[0], "")).startswith(self.label[1])


def page_names(metric_name: str) -> PageNames | None:
    """What a name stands for, ``None`` when it stands for itself alone."""
    return _CANONICAL.get(metric_name)


def _names_of(family: Family) -> dict[str, PageNames]:
    if family.kind is not Kind.HISTOGRAM:
        return {family.name: PageNames(frozenset(family.aliases), family.label)}
    parts = {
        f"{family.name}{suffix}": PageNames(frozenset(f"{alias}{suffix}" for alias in family.aliases), family.label)
        for suffix in ("_bucket", "_sum", "_count")
    }
    return {family.name: PageNames(frozenset().union(*(part.names for part in parts.values())), family.label), **parts}


_CANONICAL: dict[str, PageNames] = {
    name: names for family in FAMILIES for name, names in _names_of(family).items() if name not in family.aliases
}
