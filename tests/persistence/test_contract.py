"""Every backend keeps the contract that is shipped with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from vllm_monitor.persistence import PersistenceManager, StorageBackend
from vllm_monitor.testing import PersistenceContract


class Contract(PersistenceContract):
    """With what takes long apart."""

    @pytest.mark.slow
    def test_moving_there_and_back(self, tmp_path: Path) -> None:
        super().test_moving_there_and_back(tmp_path)

    @pytest.mark.slow
    def test_an_archive_holds_everything(self, tmp_path: Path) -> None:
        super().test_an_archive_holds_everything(tmp_path)

    @pytest.mark.slow
    def test_kill_9_loses_nothing_acknowledged(self, tmp_path: Path) -> None:
        super().test_kill_9_loses_nothing_acknowledged(tmp_path)


class TestSqlite(Contract):
    settings: ClassVar[dict[str, Any]] = {"backend": StorageBackend.SQLITE}


class TestHybrid(Contract):
    settings: ClassVar[dict[str, Any]] = {"backend": StorageBackend.HYBRID}


class TestJson(Contract):
    settings: ClassVar[dict[str, Any]] = {"backend": StorageBackend.JSON}
    several_stores = False


def test_the_suite_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that loses a record, one that loses a sample, one that rounds."""
    suite = TestHybrid()
    suite.test_learning_data_come_back_as_they_were(tmp_path / "a")
    suite.test_samples_are_found_by_their_filters(tmp_path / "b")
    suite.test_single_samples_keep_type_and_bits(tmp_path / "c")
    real_data, real_metrics = PersistenceManager.get_learning_data, PersistenceManager.get_metrics
    monkeypatch.setattr(PersistenceManager, "get_learning_data", lambda *a, **k: real_data(*a, **k)[1:])
    with pytest.raises(AssertionError, match="actions: found"):
        suite.test_learning_data_come_back_as_they_were(tmp_path / "d")
    monkeypatch.setattr(PersistenceManager, "get_metrics", lambda *a, **k: real_metrics(*a, **k)[:-1])
    with pytest.raises(AssertionError, match="all samples"):
        suite.test_samples_are_found_by_their_filters(tmp_path / "e")

    def without_signs(*arguments: Any, **named: Any) -> list[dict[str, Any]]:
        found = real_metrics(*arguments, **named)
        return [{**one, "value": one["value"] + 0.0 if one["value"] == 0 else one["value"]} for one in found]

    monkeypatch.setattr(PersistenceManager, "get_metrics", without_signs)
    with pytest.raises(AssertionError, match="samples that are not committed"):
        suite.test_single_samples_keep_type_and_bits(tmp_path / "f")
