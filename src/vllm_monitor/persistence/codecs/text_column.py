"""Text that came from outside, in a form that every SQL database can hold.

A text is stored as it is, so that a person can read it in the ``sqlite3`` shell. A text that a database could
not hold (lone surrogates, NUL), or that begins with ``json:`` itself, becomes ``json:`` and the text of
``value_codec``.
"""

from __future__ import annotations

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence.codecs.value_codec import decode_value, encode_value

__all__ = ["from_text_column", "to_text_column"]

_MARK = "json:"


def to_text_column(text: str) -> str:
    """The column value of a text."""
    if not text.startswith(_MARK) and "\0" not in text:
        try:
            text.encode()
        except UnicodeEncodeError:
            pass  # stored as JSON below
        else:
            return str.__str__(text)
    return _MARK + encode_value(text)


def from_text_column(column: str) -> str:
    """The text of a column value.

    Raises:
        StoreDamagedError: When :func:`to_text_column` did not make it.
    """
    if not column.startswith(_MARK):
        return column
    text = decode_value(column[len(_MARK) :])
    if not isinstance(text, str):
        raise StoreDamagedError("a stored text is no text", hint="Run the store's check; the rest is unharmed.")
    return text
