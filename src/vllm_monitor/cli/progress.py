"""A progress bar on stderr for work that reports ``(done, total, what)``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show a bar while the block runs, when stderr is a terminal; the block passes the callback on."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(escape(what), total=None)

        def report(done: int, total: int, step: str) -> None:
            bar.update(task, completed=done, total=total or None, description=escape(step or what))

        yield report
