"""Settings: from arguments, variables and files, with errors that can be acted on."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_monitor.core import MonitorConfig
from vllm_monitor.errors import ConfigurationError


def test_targets_are_normalised_and_named_once() -> None:
    config = MonitorConfig(targets=("localhost:8000", "http://localhost:8000/"))
    assert len(config.targets) == 1


def test_variables_set_fields_and_arguments_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLMMON_TARGETS", "http://a:1, http://b:2")
    monkeypatch.setenv("VLLMMON_INTERVAL_SECONDS", "5")
    config = MonitorConfig()
    assert config.targets == ("http://a:1", "http://b:2")
    assert config.interval_seconds == 5.0
    assert MonitorConfig(interval_seconds=2.0).interval_seconds == 2.0


def test_a_file_sets_fields_and_variables_win_over_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "monitor.toml"
    path.write_text('targets = ["http://a:1"]\ninterval_seconds = 3.0\ncanary = true\n')
    monkeypatch.setenv("VLLMMON_INTERVAL_SECONDS", "4")
    config = MonitorConfig.from_toml(path, canary=False)
    assert (config.targets, config.interval_seconds, config.canary) == (("http://a:1",), 4.0, False)


@pytest.mark.parametrize(
    "values",
    [{"interval_seconds": 0}, {"interval_seconds": float("nan")}, {"targets": ("ftp://x",)}, {"no_such_field": 1}],
)
def test_nonsense_is_refused_with_the_name_of_the_field(values: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        MonitorConfig(**values)
    assert next(iter(values)) in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("text", [None, "interval_seconds = ", "interval_secs = 1\n"])
def test_a_bad_file_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "monitor.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigurationError):
        MonitorConfig.from_toml(path)


def test_a_key_is_never_shown() -> None:
    config = MonitorConfig(api_key="sk-very-secret")
    assert "sk-very-secret" not in repr(config)
    assert "sk-very-secret" not in config.model_dump_json()


def test_settings_of_the_store_are_a_table_of_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "monitor.toml"
    path.write_text('interval_seconds = 2.0\n[store]\nmax_bytes = 5000000\ndurability = "full"\n', encoding="utf-8")
    assert MonitorConfig.from_toml(path).interval_seconds == 2.0
    assert MonitorConfig.store_settings(path) == {"max_bytes": 5_000_000, "durability": "full"}
    path.write_text("store = 3\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="no table"):
        MonitorConfig.store_settings(path)
