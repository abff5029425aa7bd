"""What a contract expects, said so that its failure explains itself."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

__all__ = ["exactly", "expect", "expect_equal", "expect_error"]


def exactly(value: Any) -> Any:
    """A value in a form that is equal only to that of a value of the same types, order and bits, at every depth."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: exactly(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return type(value).__name__, fields
    if isinstance(value, np.ndarray):
        return "array", str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return "dict", [(exactly(key), exactly(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [exactly(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return type(value).__name__, sorted(map(repr, map(exactly, value)))
    if type(value) is float:
        return "float", struct.pack("<d", value)
    return type(value).__name__, repr(value)


def expect(true: object, what: str) -> None:
    """Fail with ``what`` unless something is true.

    Raises:
        AssertionError: When it is not.
    """
    if not true:
        raise AssertionError(what)


def expect_equal(found: Any, wanted: Any, what: str) -> None:
    """Fail unless two values are equal by type and bits.

    Raises:
        AssertionError: When they are not.
    """
    expect(exactly(found) == exactly(wanted), f"{what}: found {found!r} instead of {wanted!r}")


@contextmanager
def expect_error(kind: type[Exception], what: str) -> Iterator[None]:
    """Fail unless an error of a kind is raised.

    Raises:
        AssertionError: When none is.
    """
    try:
        yield
    except kind:
        return
    message = f"{what}: no {kind.__name__} was raised"
    raise AssertionError(message)
