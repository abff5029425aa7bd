"""What the screen says about the store."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StoreLine"]


@dataclass(frozen=True, slots=True)
class StoreLine:
    """The state of the store at one tick.

    Args:
        stored_samples: Samples in the store.
        bytes_on_disk: Size of the store in bytes.
        dropped: Samples that could not be kept since this watch began.
        healthy: Whether what is seen is being kept.
        message: What is the matter with it, or anything worth knowing; may be empty.
        keeping: Whether there is a store at all.
    """

    stored_samples: int = 0
    bytes_on_disk: int = 0
    dropped: int = 0
    healthy: bool = True
    message: str = ""
    keeping: bool = True
