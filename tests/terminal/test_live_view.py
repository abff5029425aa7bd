from __future__ import annotations

import io
import logging
import sys
import threading
from collections.abc import Callable

import pytest
from rich.console import Console

from vllm_monitor.picture.snapshot import Snapshot
from vllm_monitor.records import Condition
from vllm_monitor.terminal import LiveView, StoreLine

Picture = Callable[..., Snapshot]
ConsoleOf = Callable[..., Console]
TextOf = Callable[[Console], str]
ENTER_SCREEN, LEAVE_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
STORE = StoreLine(stored_samples=1234, bytes_on_disk=2048)


@pytest.fixture(autouse=True)
def _a_capable_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")


@pytest.mark.parametrize("ending", [None, KeyboardInterrupt, RuntimeError])
def test_the_normal_screen_comes_back(
    picture: Picture, console_of: ConsoleOf, text_of: TextOf, ending: type[BaseException] | None
) -> None:
    console = console_of(terminal=True)

    def watch() -> None:
        with LiveView(console=console, store_description="./monitor_data") as view:
            view.update([picture(0)], [], STORE)
            view.update([picture(63)], [], STORE)
            if ending is not None:
                raise ending

    if ending is None:
        watch()
    else:
        with pytest.raises(ending):
            watch()
    text = text_of(console)
    assert text.index(ENTER_SCREEN) < text.index(LEAVE_SCREEN)
    assert text.rindex(HIDE_CURSOR) < text.rindex(SHOW_CURSOR)
    last_words = text[text.index(LEAVE_SCREEN) :]
    assert "Watched 1 target for 1 m 03 s." in last_words
    assert "OK" in last_words
    assert "http://127.0.0.1:8000: 12 requests in flight" in last_words
    assert "Stored 1,234 samples in ./monitor_data (2.0 KiB), 0 dropped." in last_words


def test_the_screen_shows_what_was_taken(picture: Picture, console_of: ConsoleOf, text_of: TextOf) -> None:
    console = console_of(terminal=True)
    view = LiveView(console=console)
    view.update([picture(0, condition=Condition.STALLED)], [], STORE)
    view.start()
    try:
        assert "STALLED" in text_of(console)  # drawn at once, not with the first refresh
    finally:
        view.stop()


def test_taking_a_picture_does_not_wait_for_the_terminal(picture: Picture, console_of: ConsoleOf) -> None:
    console = console_of(terminal=True)
    with LiveView(console=console) as view:
        taken = threading.Event()

        def take() -> None:
            view.update([picture(0)], [], STORE)
            taken.set()

        with console._lock:  # as long as a stopped terminal holds a write
            threading.Thread(target=take, daemon=True).start()
            assert taken.wait(timeout=10)


def test_starting_and_stopping_twice_is_once(picture: Picture, console_of: ConsoleOf, text_of: TextOf) -> None:
    console = console_of(terminal=True)
    view = LiveView(console=console)
    view.stop()
    view.start()
    view.start()
    view.stop()
    view.stop()
    assert text_of(console).count(ENTER_SCREEN) == 1
    assert text_of(console).count("Watched") == 1


def test_a_fault_of_the_view_does_not_end_the_watch(
    picture: Picture, console_of: ConsoleOf, text_of: TextOf, caplog: pytest.LogCaptureFixture
) -> None:
    console = console_of(terminal=True)
    view = LiveView(console=console)
    broken = picture(0, values={"generation_tokens_per_second": 1.0}, reason=None)
    view.update([broken], [], STORE)
    with caplog.at_level(logging.ERROR):
        view.start()
        view._leave_screen()
    assert "could not be drawn" in text_of(console)
    assert [record.levelname for record in caplog.records].count("ERROR") == 1


def test_stray_output_is_held_until_the_screen_is_gone(
    picture: Picture, console_of: ConsoleOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    console = console_of(terminal=True)
    with LiveView(console=console) as view:
        view.update([picture(0)], [], STORE)
        print("a warning of a library", file=sys.stderr)
        assert stderr.getvalue() == ""
        shown = Console(file=io.StringIO(), record=True, width=80, height=24)
        shown.print(view.render((80, 24)))
        assert "log: a warning of a library" in shown.export_text()
    assert stderr.getvalue() == "a warning of a library\n"
    assert sys.stderr is stderr


def test_held_lines_are_bounded_and_the_loss_is_told(console_of: ConsoleOf, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    with LiveView(console=console_of(terminal=True)):
        for number in range(250):
            print(number, file=sys.stderr)
    lines = stderr.getvalue().splitlines()
    assert lines[0] == "(50 earlier lines were not kept)"
    assert lines[1:] == [str(number) for number in range(50, 250)]


def test_a_dumb_terminal_gets_lines(
    picture: Picture, console_of: ConsoleOf, text_of: TextOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    console = console_of(terminal=True)
    with LiveView(console=console) as view:
        view.update([picture(0)], [], STORE)
    assert ENTER_SCREEN not in text_of(console)
    assert "http://127.0.0.1:8000 OK:" in text_of(console)
