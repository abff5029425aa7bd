from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_monitor.errors import ConfigurationError
from vllm_monitor.persistence import PersistenceConfig, StorageBackend
from vllm_monitor.persistence.json_backend.json_lines import INDEX_FILE


def test_the_first_design_s_call_works(tmp_path: Path) -> None:
    config = PersistenceConfig(
        storage_dir=tmp_path / "monitor_data",
        metrics_retention_days=30,
        checkpoint_retention_days=90,
        batch_size=1000,
        compression_enabled=True,
    )
    assert config.backend is StorageBackend.HYBRID
    assert config.db_path == tmp_path / "monitor_data" / "monitor.db"
    assert not config.storage_dir.exists()


def test_defaults_are_those_of_the_documentation() -> None:
    config = PersistenceConfig()
    assert config.storage_dir == Path("~/.vllm_monitor").expanduser()
    assert (config.metrics_retention_days, config.prediction_retention_days) == (30, 60)
    assert (config.flush_interval_seconds, config.durability, config.required) == (60, "normal", False)
    assert (config.event_retention_days, config.request_retention_days) == (180, 7)
    assert config.attempt_retention_days is None
    assert (config.block_scrapes, config.block_seconds) == (1800, 3600)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"batch_size": 0}, "greater than or equal to 1"),
        ({"metric_retention_days": 3}, "did you mean metrics_retention_days"),
        ({"url": "postgresql://host/base"}, "PostgreSQL is not available yet, write sqlite:///FOLDER/FILE"),
        ({"url": "postgresql+psycopg:///base"}, "PostgreSQL is not available yet"),
        ({"url": "postgres://x"}, "PostgreSQL is not available yet"),
        ({"url": "mysql:///a/b"}, "write sqlite:///FOLDER/FILE or json:///FOLDER"),
        ({"url": "sqlite:///"}, "write sqlite:///FOLDER/FILE"),
        ({"url": "json:///"}, "json:///FOLDER"),
        ({"url": "json:///a", "backend": "hybrid"}, "leave one of them out"),
        ({"url": "sqlite:///a/b.db", "backend": StorageBackend.JSON}, "leave one of them out"),
        ({"plugins_file": "x.json", "strategies_file": "x.json"}, "plugins_file and strategies_file are the same"),
        ({"db_file": "guardrails.json"}, "db_file and guardrails_file are the same file"),
        ({"happy_paths_file": "events.jsonl"}, "the store itself uses 'events.jsonl'"),
        ({"models_dir": "index.db"}, "the store itself uses"),
        ({"url": "sqlite:////a/b.db", "db_file": "c.db"}, "either url, or storage_dir"),
        ({"db_file": "../x"}, "plain name"),
        ({"models_dir": ".."}, "plain name"),
        ({"backend": "xml"}, "'sqlite', 'json' or 'hybrid'"),
        ({"durability": "maybe"}, "'normal' or 'full'"),
        ({"metrics_retention_days": float("nan")}, "metrics_retention_days"),
        ({"storage_dir": "a\0b"}, "NUL"),
    ],
)
def test_mistakes_are_explained(settings: dict[str, Any], advice: str) -> None:
    with pytest.raises(ConfigurationError, match="PersistenceConfig") as caught:
        PersistenceConfig(**settings)
    assert advice in caught.value.hint


def test_url_names_the_file(tmp_path: Path) -> None:
    config = PersistenceConfig(url=f"sqlite:///{tmp_path}/other.db")
    assert (config.db_path, config.backend) == (tmp_path / "other.db", StorageBackend.SQLITE)
    config = PersistenceConfig(url="sqlite:///folder/other.db", backend=StorageBackend.HYBRID)
    assert (config.db_path, config.backend) == (Path("folder/other.db"), StorageBackend.HYBRID)
    config = PersistenceConfig(url=f"json:///{tmp_path}/lines")
    assert (config.storage_dir, config.backend) == (tmp_path / "lines", StorageBackend.JSON)
    assert config.db_path == tmp_path / "lines" / INDEX_FILE


def test_settings_need_no_database() -> None:
    program = (
        "import sys; from vllm_monitor.persistence import PersistenceConfig, StorageBackend; PersistenceConfig();"
        "print([name for name in ('sqlalchemy', 'alembic', 'numpy', 'sqlite3') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_neither_a_new_store_nor_an_older_one_of_this_version_needs_alembic(tmp_path: Path) -> None:
    program = f"""
import sys
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
PersistenceManager(PersistenceConfig(storage_dir={str(tmp_path)!r})).close()
print("alembic" in sys.modules)
"""
    outputs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    ]
    assert outputs == ["False", "False"]


def test_a_backend_by_its_name(tmp_path: Path) -> None:
    config = PersistenceConfig.model_validate({"storage_dir": tmp_path, "backend": "SQLITE"})
    assert config.backend is StorageBackend.SQLITE
