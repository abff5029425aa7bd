"""The spool: numbered lines, within a bound, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vllm_monitor_engine.spool import SUFFIX, Spool

SOURCE = Path(__file__).parents[2] / "engine" / "src"


def whole_lines(folder: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        text = file.read_bytes()
        for line in text[: text.rfind(b"\n") + 1].splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue  # torn by a full disk
    return [line for line in lines if line["kind"] != "header"]


def test_lines_are_numbered_without_a_gap_over_segments(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "1-2-1", 16 * 4096, {"pid": 1})
    for number in range(500):
        assert spool.write([{"kind": "x", "value": number}, {"kind": "x", "value": number}]) == 2
    lines = whole_lines(tmp_path)
    assert [line["n"] for line in lines] == list(range(1, 1001))
    assert len(list(tmp_path.iterdir())) > 1


def test_what_waits_stays_within_the_bound_and_is_the_newest(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "1-2-1", 65_536, {"pid": 1})
    for number in range(20_000):
        spool.write([{"kind": "x", "value": number}])
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 65_536 * 1.1
    lines = whole_lines(tmp_path)
    assert lines[-1]["value"] == 19_999
    assert [line["n"] for line in lines] == list(range(lines[0]["n"], 20_001))


def test_only_this_user_reads_it(tmp_path: Path) -> None:
    Spool(tmp_path / "a" / "b", "1-2-1", 65_536, {}).write([{"kind": "x"}])
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    (file,) = (tmp_path / "a" / "b").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_link_that_lies_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / f"1-2-1.000001{SUFFIX}").symlink_to(tmp_path / "precious")
    spool = Spool(tmp_path, "1-2-1", 65_536, {})
    spool.write([{"kind": "x"}])
    assert not (tmp_path / "precious").exists()
    assert spool.write([{"kind": "x"}]) == 1, "the next segment is free"


def test_a_disk_that_fills_up_and_is_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, "1-2-1", 1_000_000, {})
    room = 700
    write = os.write

    def write_while_there_is_room(descriptor: int, data: bytes) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, "no space left on device")
        done = write(descriptor, bytes(data)[:room])
        room -= done
        return done

    monkeypatch.setattr(os, "write", write_while_there_is_room)
    pending = [{"kind": "x", "value": number} for number in range(40)]
    done = spool.write(pending)
    assert 0 < done < 40
    assert str(spool.failure).endswith("no space left on device")
    pending = pending[done:]
    assert spool.write(pending) == 0
    room = 100_000
    assert spool.write(pending) == len(pending)
    assert spool.failure is None
    lines = whole_lines(tmp_path)
    assert [(line["n"], line["value"]) for line in lines] == [(number + 1, number) for number in range(40)]


def test_no_segment_is_without_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, "1-2-1", 1_000_000, {"pid": 1})
    write, is_full = os.write, True

    def write_or_not(descriptor: int, data: bytes) -> int:
        if is_full:
            write(descriptor, bytes(data)[:5])
            raise OSError(errno.ENOSPC, "no space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", write_or_not)
    assert spool.write([{"kind": "x"}]) == 0
    assert not list(tmp_path.iterdir())
    is_full = False
    assert spool.write([{"kind": "x"}]) == 1
    (file,) = tmp_path.iterdir()
    header, line = map(json.loads, file.read_text().splitlines())
    assert (header["kind"], header["pid"], line["n"]) == ("header", 1, 1)


def test_segments_that_cannot_be_opened_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, "1-2-1", 65_536, {"pid": 1})
    open_file, is_failing = os.open, False

    def open_or_not(path: Any, *further: Any) -> int:
        if is_failing:
            raise OSError(errno.EMFILE, "too many open files")
        return open_file(path, *further)

    monkeypatch.setattr(os, "open", open_or_not)
    for number in range(3_000):
        is_failing = number % 2 == 0
        spool.write([{"kind": "x", "value": "v" * 200}])
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 65_536 * 1.1


def test_a_folder_that_is_removed_is_made_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", "1-2-1", 65_536, {"pid": 1})
    spool.write([{"kind": "x"}])
    shutil.rmtree(tmp_path / "spool")
    assert spool.write([{"kind": "x"}]) == 1
    assert [line["n"] for line in whole_lines(tmp_path / "spool")] == [2]


def test_only_what_the_dead_left_a_week_ago_is_removed(tmp_path: Path) -> None:
    names = ("someone.spool", f"{os.getpid()}-1-1.000001.spool", "4194305-1-1.000001.spool", "4194305-1-2.000001.spool")
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1.0, 1.0))
    os.utime(tmp_path / names[3])
    Spool(tmp_path, "1-2-1", 65_536, {}).write([{"kind": "x"}])
    assert {file.name for file in tmp_path.iterdir()} == {*names, "1-2-1.000001.spool"} - {names[2]}


def test_after_kill_minus_nine_all_that_was_written_is_there(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from vllm_monitor_engine.spool import Spool\n"
        f"spool = Spool(Path({str(tmp_path)!r}), '1-2-1', 10_000_000, {{}})\n"
        "number = 0\n"
        "while True:\n"
        "    number += spool.write([{'kind': 'x', 'value': 'v' * 100}])\n"
        "    print(number, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(SOURCE)}
    )
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(2_000)]
    process.send_signal(signal.SIGKILL)
    said += [line for line in process.stdout if line.endswith("\n")]
    process.stdout.close()
    process.wait()
    lines = whole_lines(tmp_path)
    assert [line["n"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) >= int(said[-1])
