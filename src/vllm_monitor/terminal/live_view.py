"""The view that ``watch`` shows: a full screen on a terminal, plain lines anywhere else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.text import Text

from vllm_monitor.clock import Clock, SystemClock
from vllm_monitor.picture.snapshot import Snapshot
from vllm_monitor.plugin_system import Panel
from vllm_monitor.records import Event, FailurePrediction
from vllm_monitor.terminal.held_stderr import HeldStderr
from vllm_monitor.terminal.plain import PlainLines
from vllm_monitor.terminal.safe_text import Script
from vllm_monitor.terminal.screen import Screen, screen_lines
from vllm_monitor.terminal.store_line import StoreLine
from vllm_monitor.terminal.summary import summary_lines
from vllm_monitor.terminal.watched import Watched

__all__ = ["LiveView"]

_log = logging.getLogger(__name__)

_DRAWINGS_PER_SECOND = 2.0
# A picture this many ticks late (and at least this many seconds) means that the watch itself is stuck.
_SILENT_TICKS = 4.0
_SILENT_SECONDS = 5.0


class LiveView:
    """Shows pictures as they come.

    On a terminal the alternate screen is used and drawn by a thread of its own, so that a slow or stopped
    terminal never delays the watch; the cursor and the normal screen come back on :meth:`stop`, also after an
    exception or Ctrl-C when used as a context manager. Anywhere else one line is printed per target when its
    condition changes, for each prediction, failure and alert, and a summary every 10 s.

    Thread-safe. ``update`` on a terminal only takes the picture and returns; on a pipe it prints.

    Args:
        console: Where to show; standard output by default.
        store_description: Where samples are kept, for the screen and the last summary.
        clock: Tells how long ago the last picture came.
    """

    def __init__(
        self,
        *,
        console: Console | None = None,
        store_description: str = "",
        clock: Clock | None = None,
    ) -> None:
        self._console = console or Console(markup=False, highlight=False, emoji=False)
        self._store_description = store_description
        self._clock = clock or SystemClock()
        self._script = Script(self._console.encoding)
        self._lock = threading.Lock()
        self._watched = Watched()
        self._updated_at: float | None = None
        self._plain = PlainLines(self._console, self._script, store_description)
        self._stderr = HeldStderr()
        self._live: Live | None = None
        self._running = False
        self._drawing_failed = False

    @property
    def full_screen(self) -> bool:
        """Whether the console is a terminal that can move its cursor."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def update(
        self,
        snapshots: Sequence[Snapshot],
        events: Sequence[Event],
        store: StoreLine,
        panels: Sequence[Panel] = (),
        predictions: Sequence[FailurePrediction] = (),
    ) -> None:
        """Take one tick.

        Args:
            snapshots: The newest picture of each target; one given before is recognised.
            events: What happened; events given before are recognised and not shown twice.
            store: The state of the store.
            panels: What plugins show.
            predictions: Those that are open.
        """
        with self._lock:
            before = self._watched.last_timestamp
            fresh = self._watched.take(snapshots, events, store, panels, predictions)
            if self._watched.last_timestamp != before:  # the same pictures again are no sign of life
                self._updated_at = self._clock.monotonic()
            if not self.full_screen:
                self._plain.tell(self._watched, fresh)

    def render(self, size: tuple[int, int]) -> RenderableType:
        """The screen for a terminal of ``size`` (cells, lines): never wider, never higher."""
        width, height = size
        with self._lock:
            screen = Screen(
                width=width,
                height=height,
                script=self._script,
                store_description=self._store_description,
                silent_seconds=self._silent_seconds(),
                log_line=self._stderr.newest_line,
            )
            return Group(*screen_lines(self._watched, screen))

    def start(self) -> None:
        """Show the screen, if there is one. Does nothing when already started."""
        if self._running:
            return
        self._running = True
        if not self.full_screen:
            return
        self._live = Live(
            _Drawing(self._draw),
            console=self._console,
            screen=True,
            refresh_per_second=_DRAWINGS_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )
        self._stderr.hold()
        try:
            self._live.start(refresh=True)
        except BaseException:
            self._leave_screen()
            raise

    def stop(self) -> None:
        """Bring the normal screen back and print a short summary. Does nothing when not running."""
        if not self._running:
            return
        self._running = False
        self._leave_screen()
        with self._lock:
            lines = summary_lines(self._watched, self._store_description, self._script)
        for line in lines:
            self._console.print(line, soft_wrap=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _leave_screen(self) -> None:
        live, self._live = self._live, None
        try:
            if live is not None:
                live.stop()
        finally:
            # A second Ctrl-C may have cut stop() short; a terminal without a cursor helps nobody.
            if self._console.is_alt_screen:
                self._console.set_alt_screen(False)
            if live is not None:
                self._console.show_cursor(True)
            self._stderr.release()

    def _silent_seconds(self) -> float:
        if self._updated_at is None or not self._watched.histories:
            return 0.0
        silent = self._clock.monotonic() - self._updated_at
        usual = max(history.interval_seconds for history in self._watched.histories.values())
        return silent if silent > max(_SILENT_SECONDS, _SILENT_TICKS * usual) else 0.0

    def _draw(self, size: tuple[int, int]) -> RenderableType:
        """The screen, or why there is none: a fault of the view must not end the watch."""
        try:
            return self.render(size)
        except Exception as error:
            if not self._drawing_failed:
                _log.exception("the screen could not be drawn; the watch goes on")
            self._drawing_failed = True
            return Text(f"The screen could not be drawn ({type(error).__name__}); the watch goes on.")


class _Drawing:
    """What rich draws: always the present state, at the present size of the terminal."""

    def __init__(self, draw: Callable[[tuple[int, int]], RenderableType]) -> None:
        self._draw = draw

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._draw((options.size.width, options.size.height))
