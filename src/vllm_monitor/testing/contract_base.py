"""What every part of the contract suite stands on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from vllm_monitor.persistence import PersistenceConfig, PersistenceManager

__all__ = ["HOST", "StoreContract"]

HOST = "http://127.0.0.1:8000"


class StoreContract:
    """Opens stores of the backend that is checked.

    Args:
        settings: What ``PersistenceConfig`` is given beside ``storage_dir``.
        several_stores: Whether a folder may be open more than once at a time, in one process or in several.
    """

    settings: ClassVar[dict[str, Any]]
    several_stores: ClassVar[bool] = True

    def config(self, folder: Path, **changes: Any) -> PersistenceConfig:
        """The settings of a store in a folder. Override it where that takes more than ``settings``."""
        return PersistenceConfig(**{"storage_dir": folder, **self.settings, **changes})

    def open(self, folder: Path, **changes: Any) -> PersistenceManager:
        """Open the store of a folder; close it, or use it in ``with``."""
        return PersistenceManager(self.config(folder, **changes))
