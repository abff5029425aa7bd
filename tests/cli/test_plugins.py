"""``vllm-monitor plugins``: what an operator does with plugins."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.cli.running import lines, run, start
from tests.plugins.examples import COUNTER
from tests.waiting import wait_until

from vllm_monitor.simulator import SimulatorProcess


def listed(store: Path) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in lines(run("plugins", "list", "--storage-dir", store, "--json").stdout)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "counter.py"
    path.write_text(COUNTER)
    return path


def test_added_listed_shown_switched_and_removed(tmp_path: Path, file: Path) -> None:
    store = tmp_path / "store"
    assert "there are none yet" in run("plugins", "list", "--storage-dir", store).stdout
    assert "counter was added and is trusted" in run("plugins", "add", file, "--storage-dir", store).stdout
    assert listed(store)["counter"]["state"] == "ready"
    assert "Counts its own turns." in run("plugins", "list", "--storage-dir", store).stdout
    shown = run("plugins", "show", "counter", "--storage-dir", store).stdout
    assert "    turns += 1" in shown
    assert f"sha256: {listed(store)['counter']['sha256']}" in shown
    assert "was registered" in shown
    run("plugins", "disable", "counter", "--storage-dir", store)
    assert listed(store)["counter"]["state"] == "disabled"
    assert "counter is on" in run("plugins", "enable", "counter", "--storage-dir", store).stdout
    run("plugins", "remove", "counter", "--storage-dir", store)
    assert listed(store) == {}


def test_edited_it_waits_and_the_list_says_why(tmp_path: Path, file: Path) -> None:
    store = tmp_path / "store"
    run("plugins", "add", file, "--storage-dir", store)
    document = store / "plugins.json"
    document.write_text(document.read_text().replace("turns += 1", "turns += 2"))
    entry = listed(store)["counter"]
    assert entry["state"] == "untrusted"
    assert "was changed since it was registered" in entry["reason"]
    run("plugins", "add", "counter", "--storage-dir", store, check=2)  # a file that is not there trusts nothing
    assert listed(store)["counter"]["state"] == "untrusted"
    assert "plugins trust counter" in run("plugins", "list", "--storage-dir", store).stdout.replace("\n", " ")
    assert "counter is trusted" in run("plugins", "trust", "counter", "--storage-dir", store).stdout
    assert listed(store)["counter"]["state"] == "ready"


def test_show_hides_nothing_from_who_decides_about_trust(tmp_path: Path) -> None:
    file = tmp_path / "sly.py"
    sly = (
        "def collect(context):\n    note = '\x1b]'; import os; os.getcwd()  # \u202e\x0c"
        + "x" * 9000
        + " end\n    return {}\n"
    )
    file.write_text(sly, newline="")
    run("plugins", "add", file, "--kind", "collector", "--storage-dir", tmp_path / "store")
    shown = run("plugins", "show", "sly", "--storage-dir", tmp_path / "store").stdout
    assert "        note = '\\x1b]'; import os; os.getcwd()  # \\u202e\\x0cx" in shown
    assert "x end\n" in shown
    assert (
        json.loads(run("plugins", "show", "sly", "--json", "--storage-dir", tmp_path / "store").stdout)["source"] == sly
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["add", "nothing.py"], "cannot be read"),
        (["add", "FILE", "--config", "{"], "no JSON"),
        (["add", "FILE", "--config", "[1]"], "no JSON object"),
        (["add", "FILE", "--name", "a b"], "no name for a plugin"),
        (["add", "FILE", "--kind", "panel"], "says it is a collector"),
        (["trust", "other"], "there is no plugin 'other'"),
        (["enable", "other"], "there is no plugin 'other'"),
        (["remove", "other"], "there is no plugin 'other'"),
        (["show", "other"], "there is no plugin 'other'"),
    ],
)
def test_what_makes_no_sense(tmp_path: Path, file: Path, arguments: list[str], words: str) -> None:
    given = [str(file) if one == "FILE" else one for one in arguments]
    done = run("plugins", *given, "--storage-dir", tmp_path / "store", check=2)
    assert words in done.stderr


def samples(store: Path) -> int:
    done = run("query", "my_turns", "--last", "1h", "--storage-dir", store, "--csv")
    return len(done.stdout.splitlines())


@pytest.mark.slow
def test_a_running_watch_takes_up_what_is_added_and_switched_off(tmp_path: Path, file: Path) -> None:
    """As an operator would: from another terminal, beside the watch."""
    store = tmp_path / "store"
    with SimulatorProcess(seed=1, rate=5.0) as simulator:
        watch = start("watch", simulator.url, "--interval", "0.5", "--storage-dir", store)
        try:
            wait_until((store / "monitor.db").exists, "the watch to begin")
            run("plugins", "add", file, "--storage-dir", store)
            wait_until(lambda: "my_turns" in stored_names(store), "its first sample", 20.0)
            wait_until(lambda: samples(store) > 5, "more of them")
            run("plugins", "disable", "counter", "--storage-dir", store)
            wait_until(partial(has_no_children, watch.pid), "its process to end", 20.0)
        finally:
            watch.terminate()
            watch.communicate()


def stored_names(store: Path) -> str:
    return run("sql", "SELECT metric_name FROM series", "--storage-dir", store).stdout


def has_no_children(pid: int) -> bool:
    return not any("plugin_system" in " ".join(one.cmdline()) for one in psutil.Process(pid).children())
