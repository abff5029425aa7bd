"""The same figure of many objects at once: without a loop in Python as long as all of them are as they should be.

What is not as it should be, as other versions of vLLM may hand it over, is looked at one by one and passed over.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Any

__all__ = ["StepColumns", "is_number"]

_NUMBERS = {int, float}
_NUMBERS_OR_NONE = {int, float, type(None)}


def is_number(value: object) -> bool:
    """Whether it is a finite number, and neither true nor false."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class StepColumns:
    """Reads columns; a path is an attribute, or several with dots between them. Not thread-safe.

    Attributes:
        faults: How often a figure was there and could not be read.
    """

    __slots__ = ("faults",)

    def __init__(self) -> None:
        self.faults = 0

    def numbers(self, objects: Sequence[Any], path: str) -> list[float]:
        """The figures of the objects that have a number there."""
        with contextlib.suppress(Exception):  # one of them has no such thing, or none that can be read
            found = list(map(attrgetter(path), objects))
            if _NUMBERS.issuperset(map(type, found)) and math.isfinite(sum(found)):
                return found
        return [value for value in self._one_by_one(objects, path) if is_number(value)]

    def aligned(self, objects: Sequence[Any], path: str) -> list[float | None]:
        """The figure of each object, in order; ``None`` where it has no number there."""
        found = self.values(objects, path)
        if _NUMBERS_OR_NONE.issuperset(map(type, found)) and math.isfinite(sum(filter(None, found))):
            return found
        return [value if is_number(value) else None for value in found]

    def values(self, objects: Sequence[Any], path: str) -> list[Any]:
        """Whatever each object has there, in order; ``None`` where it has no such thing."""
        try:
            return list(map(attrgetter(path), objects))
        except Exception:  # likewise
            return [next(iter(self._one_by_one((one,), path)), None) for one in objects]

    def total(self, objects: Sequence[Any], path: str) -> float | None:
        """The sum of what has been added; ``None`` where no object says so. Nothing is ever taken away again."""
        found = self.numbers(objects, path)
        if not found:
            return None
        return sum(found) if min(found) >= 0 else sum(value for value in found if value >= 0)

    def flattened(self, objects: Sequence[Any], path: str) -> list[Any]:
        """The elements of the lists of the objects that have a list there."""
        with contextlib.suppress(Exception):  # likewise
            return list(chain.from_iterable(map(attrgetter(path), objects)))
        lists = (value for value in self._one_by_one(objects, path) if isinstance(value, (list, tuple)))
        return list(chain.from_iterable(lists))

    def _one_by_one(self, objects: Iterable[Any], path: str) -> Iterable[Any]:
        read = attrgetter(path)
        for one in objects:
            try:
                value = read(one)
            except AttributeError:
                continue
            except Exception:  # a fault of whoever hands it over, and no reason to lose the others
                self.faults += 1
                continue
            yield value
