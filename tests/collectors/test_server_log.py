from __future__ import annotations

import os
from pathlib import Path

import pytest

from vllm_monitor.clock import ManualClock
from vllm_monitor.collectors.server_log import MAX_LINE_BYTES, LogTail


class Tail:
    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        self.tail = LogTail(path, "http://gpu7:8000", ManualClock(9.0), from_start=from_start)

    def lines(self) -> list[str]:
        seen = self.tail.poll()
        assert all((one.target, one.timestamp) == ("http://gpu7:8000", 9.0) for one in seen)
        return [one.line for one in seen]


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "vllm.log"


def test_only_what_is_added_after_the_start(log: Path) -> None:
    append(log, b"old\n")
    tail = Tail(log)
    assert tail.lines() == []
    append(log, b"one\r\ntw")
    assert tail.lines() == ["one"]
    append(log, b"o\n\nthree\n")
    assert tail.lines() == ["two", "", "three"]
    assert tail.lines() == []
    tail.tail.close()


def test_from_the_start_when_asked(log: Path) -> None:
    append(log, b"old\n")
    tail = Tail(log, from_start=True)
    assert tail.lines() == ["old"]
    tail.tail.close()


def test_a_file_that_comes_later_is_read_whole(log: Path) -> None:
    tail = Tail(log)
    assert tail.lines() == []
    append(log, b"first\n")
    assert tail.lines() == ["first"]
    tail.tail.close()


def test_rotation_by_renaming_loses_nothing(log: Path) -> None:
    append(log, b"old\n")
    tail = Tail(log)
    append(log, b"a\n")
    log.rename(log.with_suffix(".1"))
    append(log.with_suffix(".1"), b"b\nunfinished")
    append(log, b"c\n")
    assert tail.lines() == ["a", "b", "unfinished", "c"]
    append(log, b"d\n")
    assert tail.lines() == ["d"]
    tail.tail.close()


def test_rotation_before_the_new_file_exists(log: Path) -> None:
    append(log, b"")
    tail = Tail(log)
    log.rename(log.with_suffix(".1"))
    append(log.with_suffix(".1"), b"late\n")
    assert tail.lines() == ["late"]
    append(log, b"new\n")
    assert tail.lines() == ["new"]
    tail.tail.close()


def test_truncation_in_place(log: Path) -> None:
    append(log, b"a long line that was there before\n")
    tail = Tail(log)
    os.truncate(log, 0)
    append(log, b"new\n")
    assert tail.lines() == ["new"]
    tail.tail.close()


def test_huge_lines_are_cut_and_bytes_replaced(log: Path) -> None:
    tail = Tail(log)
    append(log, b"x" * (3 * MAX_LINE_BYTES))
    first = tail.lines()
    append(log, b"y" * MAX_LINE_BYTES)
    assert tail.lines() == []
    append(log, b"\n\xff\xfe next\n")
    assert [*first, *tail.lines()] == ["x" * MAX_LINE_BYTES, "\ufffd\ufffd next"]
    tail.tail.close()


def test_a_flood_is_taken_in_portions(log: Path) -> None:
    tail = Tail(log)
    append(log, b"0123456789abcde\n" * 600_000)
    first = tail.lines()
    assert 0 < len(first) < 600_000
    rest = []
    while more := tail.lines():
        rest.extend(more)
    assert len(first) + len(rest) == 600_000
    tail.tail.close()


def test_a_pipe_instead_of_a_file_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    tail = Tail(tmp_path / "log")
    assert tail.lines() == []
    assert "regular file" in tail.tail.note


def test_a_folder_instead_of_a_file_is_noted(tmp_path: Path) -> None:
    tail = Tail(tmp_path)
    assert tail.lines() == []
    assert str(tmp_path) in tail.tail.note
