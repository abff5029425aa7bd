"""Happy paths as somebody in front of a terminal uses them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.running import lines, run
from tests.happy_paths.test_happy_paths import T
from tests.happy_paths.test_happy_paths import run as run_server

from vllm_monitor.clock import SystemClock
from vllm_monitor.persistence import PersistenceConfig, PersistenceManager


def test_record_list_show_and_compare(tmp_path: Path) -> None:
    now = float(round(SystemClock().now()))
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store")) as store:
        run_server(store, now - 3_000.0)
        run_server(store, now - 200.0, tokens_per_second=50.0)
    where = ("--storage-dir", tmp_path / "store")
    before = ("--last", "10m", "--end", str(now - 2_500.0))
    assert "120 pages, load 2-3" in run("happy-paths", "record", "before", *before, *where).stdout
    (entry,) = lines(run("happy-paths", "list", "--json", *where).stdout)
    assert (entry["name"], entry["target"], entry["success_count"]) == ("before", T, 0)
    assert "before" in run("happy-paths", "list", *where).stdout
    assert "generation_tokens_per_second" in run("happy-paths", "show", "before", *where).stdout
    details = json.loads(run("happy-paths", "show", "before", "--json", *where).stdout)
    assert details["profile"]["generation_tokens_per_second"]["2-3"]["count"] > 100
    said = run("happy-paths", "compare", "before", "--last", "10m", *where).stdout
    assert "worse  generation_tokens_per_second -50% at equal load (2-3 running)" in said
    run("happy-paths", "record", "after", "--last", "10m", *where)
    found = json.loads(run("happy-paths", "compare", "before", "after", "--json", *where).stdout)
    assert found["score"] > 0.4
    assert "as before" in run("happy-paths", "compare", "after", "after", *where).stdout


def test_what_makes_no_sense(tmp_path: Path) -> None:
    with PersistenceManager(PersistenceConfig(storage_dir=tmp_path / "store")) as store:
        store.save_metric("custom", "x", 1.0)
    where = ("--storage-dir", tmp_path / "store")
    assert "which server?" in run("happy-paths", "record", "x", *where, check=2).stderr
    assert "no happy path" in run("happy-paths", "show", "x", *where, check=2).stderr
    assert "there are none yet" in run("happy-paths", "list", *where).stdout
    assert "nothing is stored of" in run("happy-paths", "record", "x", "--target", "http://a", *where, check=2).stderr
