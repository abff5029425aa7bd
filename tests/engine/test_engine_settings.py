"""What the operator chose; a guest never refuses to start."""

from __future__ import annotations

from pathlib import Path

from vllm_monitor_engine.settings import EngineSettings, default_spool_dir


def test_it_keeps_still_unless_told() -> None:
    assert not EngineSettings.from_environment({}).enabled
    assert not EngineSettings.from_environment({"VLLMMON_ENABLED": "0"}).enabled
    assert EngineSettings.from_environment({"VLLMMON_ENABLED": "1"}).enabled


def test_what_is_wrong_is_passed_over_and_told() -> None:
    settings = EngineSettings.from_environment(
        {
            "VLLMMON_FLUSH_SECONDS": "often",
            "VLLMMON_BUFFER_STEPS": "-5",
            "VLLMMON_STALL_SECONDS": "nan",
            "VLLMMON_SPOOL_DIR": "relative/path",
            "VLLMMON_TARGET_URL": "http://gpu1:8000/",
        }
    )
    assert settings.flush_seconds == 1.0
    assert settings.buffer_steps == 16_384
    assert settings.stall_seconds == 3.0
    assert settings.spool_dir == default_spool_dir()
    assert settings.target_url == "http://gpu1:8000"
    assert len(settings.complaints) == 4
    assert "VLLMMON_FLUSH_SECONDS='often' is no number from 0.05 to 60; 1 is used" in settings.complaints


def test_the_folder_is_this_users_own() -> None:
    assert default_spool_dir(lambda: 1234).name == "vllm-monitor-1234"
    assert EngineSettings.from_environment({"VLLMMON_SPOOL_DIR": "/run/x"}).spool_dir == Path("/run/x")


def test_limits_of_the_gate_are_read_and_what_is_wrong_is_no_limit() -> None:
    good = {"VLLMMON_ADMISSION_LIMIT": "64", "VLLMMON_CLIENT_LIMIT": "0", "VLLMMON_REFUSED_PROMPTS": f"{'AB' * 32},"}
    settings = EngineSettings.from_environment(good)
    assert (settings.admission_limit, settings.client_limit) == (64, 0)
    assert settings.refused_prompts == ("ab" * 32,)
    assert settings.complaints == ()
    for wrong in ("-1", "many", "1.5", "9" * 30, "\u0663"):
        settings = EngineSettings.from_environment({"VLLMMON_ADMISSION_LIMIT": wrong, "VLLMMON_REFUSED_PROMPTS": wrong})
        assert (settings.admission_limit, settings.refused_prompts) == (None, ())
        assert len(settings.complaints) == 2
