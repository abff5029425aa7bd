"""docs/cli.md names every command, option, variable and JSON key that there is, and none that there is not."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.docs.commands import COMMANDS, ROOT, option_names
from tests.docs.pages import DOCS, REPOSITORY, blocks, code_spans, section, table_rows
from typer.testing import CliRunner

from vllm_monitor.cli.app import app, main
from vllm_monitor.core import MonitorConfig, Tick, tick_as_json
from vllm_monitor.picture import Snapshot
from vllm_monitor.records import Condition, Event, GpuInfo, HostPressure, LifecycleState, ProcessInfo

PAGE = DOCS / "cli.md"
demo = import_module("vllm_monitor.cli.demo")  # the package has a function of that name
RECORDING = REPOSITORY / "tests" / "data" / "engine_sigstop_s0.jsonl.gz"


def documented(heading: str) -> dict[str, list[str]]:
    """What stands in the first column of the tables under a heading, and the rest of its row."""
    return {name: row[1:] for row in table_rows(section(PAGE, heading)) for name in code_spans(row[0])}


@pytest.mark.parametrize("name", COMMANDS)
def test_options(name: str) -> None:
    command, rows = COMMANDS[name], documented(name)
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            assert (parameter.metavar or parameter.name.upper()) in rows
            continue
        for option in (*parameter.opts, *parameter.secondary_opts):
            assert option in rows, f"{option} is not documented"
        default, meaning = rows[parameter.opts[0]]
        if isinstance(parameter.default, (int, float)) and not isinstance(parameter.default, bool):
            assert float(default) == parameter.default
        if parameter.envvar:
            assert f"`{parameter.envvar}`" in meaning
    gone = {row for row in rows if row.startswith("-")} - option_names(command)
    assert gone == set()


def test_commands_and_options_of_the_program() -> None:
    assert set(documented("Command line")) >= option_names(ROOT)
    headings = [line[4:] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("### ")]
    assert list(COMMANDS) == headings[: len(COMMANDS)]


def test_variables() -> None:
    rows = documented("Settings")
    expected = {f"VLLMMON_{name.upper()}" for name in MonitorConfig.model_fields}
    assert set(rows) - {"VLLMMON_STORAGE_DIR", "VLLMMON_TRUST_FILE"} == expected
    for name, field in MonitorConfig.model_fields.items():
        key, default, _ = rows[f"VLLMMON_{name.upper()}"]
        assert key == f"`{name}`"
        if isinstance(field.default, bool):
            assert default == str(field.default).lower()
        elif isinstance(field.default, (int, float)):
            assert float(default) == field.default
        else:
            assert default == "none"


def test_the_toml_example_is_read(tmp_path: Path) -> None:
    (example,) = (block.text for block in blocks(PAGE) if block.language == "toml")
    path = tmp_path / "monitor.toml"
    path.write_text(example, encoding="utf-8")
    settings = MonitorConfig.from_toml(path)
    assert settings.targets == ("http://gpu1:8000", "http://gpu2:8000")
    assert settings.canary


def keys_of(value: Any, *, below: frozenset[str] = frozenset()) -> set[str]:
    """All keys of JSON values, except those inside of the keys in ``below``."""
    if isinstance(value, list):
        return set().union(*(keys_of(item, below=below) for item in value))
    if not isinstance(value, dict):
        return set()
    inner = (keys_of(item, below=below) for key, item in value.items() if key not in below)
    return set(value).union(*inner)


def assert_documented(value: Any, heading: str, *, below: frozenset[str] = frozenset()) -> None:
    part = section(PAGE, heading)
    spans = set(code_spans(part))
    assert keys_of(value, below=below) - spans == set()
    rows = {span for row in table_rows(part) for span in code_spans(row[0])} - {"key"}
    assert rows - keys_of(value, below=below) == set()


def test_keys_of_a_tick() -> None:
    snapshot = Snapshot(
        target="http://127.0.0.1:8000",
        timestamp=1.0,
        state=LifecycleState.SERVING,
        condition=Condition.IDLE,
        reason="nothing to do",
        condition_since=0.0,
        processes=(ProcessInfo(1, "api", "sleeping", 0.0, 1),),
        host=HostPressure(),
        gpus=(GpuInfo(0, "a GPU"),),
    )
    event = Event(timestamp=1.0, event_type="log_ready", message="ready")
    assert_documented(tick_as_json(Tick(snapshot, (event,))), "JSON of watch", below=frozenset({"values"}))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one replayed recording; what replay said lies beside it."""
    folder = tmp_path_factory.mktemp("store")
    result = CliRunner().invoke(app, ["replay", str(RECORDING), "--json", "--storage-dir", str(folder)])
    assert result.exit_code == 0, result.output
    (folder / "replay.json").write_text(result.stdout, encoding="utf-8")
    return folder


def test_keys_of_replay(store: Path) -> None:
    report = json.loads((store / "replay.json").read_text(encoding="utf-8"))
    assert {entry["condition"] for entry in report["timeline"]} >= {"stalled", "ok"}
    assert_documented(report, "JSON of replay")


@pytest.mark.parametrize(
    ("name", "arguments", "below"),
    [
        ("query", ["vllm:generation_tokens_total"], {"tags"}),
        ("status", [], set[str]()),
        ("stats", [], {"dropped"}),
    ],
)
def test_keys_of_what_is_stored(store: Path, name: str, arguments: list[str], below: set[str]) -> None:
    result = CliRunner().invoke(app, [name, *arguments, "--json", "--storage-dir", str(store)])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    if name == "query":
        document["gaps"] = document["gaps"] or [dict.fromkeys(("target", "from", "to", "seconds", "reason"))]
    assert_documented(document, f"JSON of {name}", below=frozenset(below))


def test_keys_of_the_demo() -> None:
    nothing_stored: Any = SimpleNamespace(persistence_manager=None)
    report = demo._report(demo._plan(45.0), [], nothing_stored, 45.0, kept=False)
    assert_documented(report, "JSON of demo")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status", "--storage-dir", "nowhere"], 2),
        (["watch", "http://127.0.0.1:8000", "--interval", "0"], 2),
        (["watch", "--no-such-option"], 2),
        (["replay", "nothing.jsonl"], 1),
        (["--version"], 0),
    ],
)
def test_exit_codes(
    arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vllm-monitor", *arguments])
    with pytest.raises(SystemExit) as ending:
        main()
    assert (ending.value.code or 0) == code
    assert str(code) in documented("Command line")
