"""Waits for a condition instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(true: Callable[[], object], what: str, seconds: float = 15.0) -> None:
    """Return as soon as ``true()`` is; fail with ``what`` after ``seconds``."""
    ends_at = time.monotonic() + seconds
    while not true():
        if time.monotonic() > ends_at:
            message = f"waited {seconds:g} s in vain: {what}"
            raise AssertionError(message)
        time.sleep(0.02)
