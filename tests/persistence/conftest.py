from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vllm_monitor.persistence import PersistenceConfig, PersistenceManager


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., PersistenceManager]]:
    """Open (again) the store of the test; everything is closed at its end."""
    opened: list[PersistenceManager] = []

    def open_it(*, synchronous: bool = False, clock: Any = None, **settings: Any) -> PersistenceManager:
        settings.setdefault("storage_dir", tmp_path / "store")
        manager = PersistenceManager(PersistenceConfig(**settings), synchronous=synchronous, clock=clock)
        opened.append(manager)
        return manager

    yield open_it
    for manager in opened:
        manager.close()
