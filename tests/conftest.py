from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

REPOSITORY = Path(__file__).resolve().parents[1]
# What steers the tests themselves; every other VLLMMON_ variable is a setting of the monitor.
TEST_CONTROLS = frozenset(
    {
        "VLLMMON_CACHE_DIR",
        "VLLMMON_NO_VLLM",
        "VLLMMON_REQUIRE_SERVICES",
        "VLLMMON_SHARED",
        "VLLMMON_UPDATE_COMPATIBILITY",
        "VLLMMON_VLLM_PYTHON",
    }
)

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker for each core and one more, since tests wait as often as they compute.

    0, one after the other, for slow tests and real servers, which fill a machine alone.
    """
    is_default = "not slow" in config.option.markexpr
    return min((os.cpu_count() or 1) + 1, 4) if is_default else 0


@pytest.fixture(autouse=True)
def _operators_own_setup_stays_out(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the settings, or touches the default store, of whoever runs it."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    for name in list(os.environ):
        if name.startswith("VLLMMON_") and name not in TEST_CONTROLS:
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of recordings of real servers: ``VLLMMON_SHARED``, or ``shared`` beside the checkout."""
    folder = Path(os.environ.get("VLLMMON_SHARED") or REPOSITORY.parent / "shared")
    if not (folder / "recordings").is_dir():
        pytest.skip(f"needs the shared recordings, and {folder} has none (VLLMMON_SHARED names another folder)")
    return folder
