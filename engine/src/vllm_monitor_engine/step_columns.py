"""The figures of many objects at once: without a loop in Python as long as all of them are as they should be.

What is not as it should be, as other versions of vLLM may hand it over, is looked at one by one and passed over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

__all__ = ["ColumnReader", "figures_of", "flat", "is_number", "numbers_of", "total_of"]

_LISTS = {list, tuple}
_NUMBERS = {int, float}
_NUMBERS_OR_NONE = {int, float, type(None)}


class ColumnReader:
    """Reads the same attributes of many objects. Not thread-safe.

    Args:
        paths: By the name of each column, an attribute, or several with dots between them; at least two.

    Attributes:
        faults: How often something was there and could not be read.
    """

    __slots__ = ("_offered", "_paths", "_read", "faults")

    def __init__(self, paths: dict[str, str]) -> None:
        self._paths = paths
        self._offered = list(paths)
        self._read = attrgetter(*paths.values())
        self.faults = 0

    def read(self, objects: Sequence[Any]) -> dict[str, Sequence[Any]]:
        """The columns, each with a value for every object: ``None`` where it has no such thing."""
        found = self._read_alike(objects)
        if found is None and objects:
            self._adapt(objects[-1])
            found = self._read_alike(objects)
        if found is not None:
            return found
        return {name: [self._one(each, path) for each in objects] for name, path in self._paths.items()}

    def _read_alike(self, objects: Sequence[Any]) -> dict[str, Sequence[Any]] | None:
        """The columns, if all objects have all that is known to be offered."""
        try:
            columns: dict[str, Sequence[Any]] = dict(
                zip(self._offered, zip(*map(self._read, objects), strict=True), strict=True)
            )
        except Exception:  # one of them has no such thing, or none that can be read
            return None
        return columns if len(columns) == len(self._paths) else self._filled(columns, len(objects))

    def _filled(self, columns: dict[str, Sequence[Any]], length: int) -> dict[str, Sequence[Any]]:
        return {name: columns.get(name, (None,) * length) for name in self._paths}

    def _adapt(self, example: Any) -> None:
        """See what this version offers; what is only ``None`` now may come, and is asked for."""
        self._offered = [name for name, path in self._paths.items() if _has(example, path.partition(".")[0])]
        offered = [self._paths[name] for name in self._offered]
        # With a single path there would be no tuples.
        self._read = attrgetter(*offered) if len(offered) > 1 else attrgetter(*self._paths.values())

    def _one(self, source: Any, path: str) -> Any:
        try:
            return attrgetter(path)(source)
        except AttributeError:
            return None
        except Exception:  # a fault of whoever hands it over, and no reason to lose the others
            self.faults += 1
            return None


def _has(source: Any, attribute: str) -> bool:
    try:
        return hasattr(source, attribute)
    except Exception:  # it has it, though it cannot be read now
        return True


def is_number(value: object) -> bool:
    """Whether it is a finite number, and neither true nor false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def figures_of(column: Sequence[Any]) -> Sequence[float | None]:
    """The column with ``None`` for what is no number."""
    if _NUMBERS_OR_NONE.issuperset(map(type, column)) and math.isfinite(sum(filter(None, column))):
        return column
    return [value if is_number(value) else None for value in column]


def numbers_of(column: Sequence[Any]) -> Sequence[float]:
    """The numbers of the column."""
    if _NUMBERS.issuperset(map(type, column)) and math.isfinite(sum(column)):
        return column
    return [value for value in column if is_number(value)]


def total_of(column: Sequence[Any]) -> float | None:
    """The sum of what has been added; ``None`` where nobody says so. Nothing is ever taken away again."""
    try:
        total: float = sum(column)
        if column and math.isfinite(total) and min(column) >= 0:
            return total
    except (TypeError, ValueError, OverflowError):  # there is something else among them
        pass
    numbers = [value for value in column if is_number(value) and value >= 0]
    return sum(numbers) if numbers else None


def flat(column: Sequence[Any]) -> list[Any]:
    """The elements of the lists of the column."""
    if not _LISTS.issuperset(map(type, column)):
        column = [value for value in column if isinstance(value, (list, tuple))]
    return list(chain.from_iterable(column))
