"""What happens around ``os.fork()``: stores come to rest before it, and go on after it.

In the moment of a fork no thread is inside SQLite and no connection is open, so that nothing of it is inherited: the
parent's are made again when they are next needed, and the child makes its own. What was saved before the fork is
written before it. That takes some milliseconds in the parent. Whoever uses a connection for longer than
:data:`LONGEST_WAIT_SECONDS` (an export, say), or forks while it uses one itself, is not waited for: the child then
refuses to open that store and says so (``inherited_files``), and the parent is not concerned.

Locks are taken in this order: the one of this module, the writers' (nobody commits any more), the gate of connections
(nobody reads or maintains any more). All with the same deadline.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from vllm_monitor.clock import SystemClock
from vllm_monitor.persistence.forks.connection_gate import GATE
from vllm_monitor.persistence.forks.inherited_files import note_inherited_files

__all__ = ["FORKS", "LONGEST_WAIT_SECONDS", "ForkHooks"]

_LOG = logging.getLogger(__name__)
LONGEST_WAIT_SECONDS = 5.0
"""A fork waits this long for those who use a connection."""


class _Store(Protocol):
    def rest(self) -> None: ...

    def abandon(self) -> None: ...


class _Writer(Protocol):
    def hold(self, deadline: float) -> bool: ...

    def let_go(self) -> None: ...


class _Manager(Protocol):
    def after_fork_in_child(self) -> None: ...


Thing = TypeVar("Thing")


class _Living(Generic[Thing]):
    """Things for as long as they live. Thread-safe, which ``WeakSet`` is not when it is gone through."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[int, Thing] = weakref.WeakValueDictionary()

    def add(self, thing: Thing) -> None:
        self._known[id(thing)] = thing

    def discard(self, thing: Thing) -> None:
        self._known.pop(id(thing), None)

    def all(self) -> list[Thing]:
        return [thing for reference in self._known.valuerefs() if (thing := reference()) is not None]


@dataclass(slots=True)
class _Fork:
    """One fork that is under way: what was taken for it."""

    is_locked: bool
    held: list[_Writer] = field(default_factory=list)


class ForkHooks:
    """Brings the stores of this process to rest for a fork. Thread-safe; things are watched as long as they live."""

    def __init__(self) -> None:
        self.stores: _Living[_Store] = _Living()
        self.writers: _Living[_Writer] = _Living()
        self.managers: _Living[_Manager] = _Living()
        self._lock = threading.RLock()
        self._under_way: defaultdict[int, list[_Fork]] = defaultdict(list)  # by thread

    def before(self) -> None:
        """Bring everything to rest."""
        if GATE.is_inside():
            # Not waited for: it is ourselves. Nothing is closed under those who use it.
            self._under_way[threading.get_ident()].append(_Fork(is_locked=False))
            _LOG.warning("forked while this thread uses the store; the child cannot use it")
            return
        deadline = SystemClock().monotonic() + LONGEST_WAIT_SECONDS
        fork = _Fork(self._lock.acquire(timeout=LONGEST_WAIT_SECONDS))
        self._under_way[threading.get_ident()].append(fork)
        if not (fork.is_locked and self._hold(fork, deadline) and GATE.shut(deadline)):
            _LOG.warning("forked while the store is in use for a long time; the child cannot use it")
            return
        for store in self.stores.all():
            try:
                store.rest()
            except Exception:  # the fork cannot be called off; the child finds the file open, and refuses it
                _LOG.exception("a store could not be brought to rest for a fork")

    def after_in_parent(self) -> None:
        """Let everything go on."""
        fork = self._under_way[threading.get_ident()].pop()
        if not fork.is_locked:
            return
        GATE.open()
        for writer in fork.held:
            writer.let_go()
        self._lock.release()

    def after_in_child(self) -> None:
        """Leave everything to the parent, and begin anew."""
        stores, managers = self.stores.all(), self.managers.all()
        self._lock = threading.RLock()
        self._under_way = defaultdict(list)
        self.stores, self.writers = _Living(), _Living()
        GATE.forget_all()
        note_inherited_files()
        for store in stores:
            store.abandon()
        for manager in managers:
            manager.after_fork_in_child()

    def _hold(self, fork: _Fork, deadline: float) -> bool:
        for writer in self.writers.all():
            if not writer.hold(deadline):
                return False
            fork.held.append(writer)
        return True


FORKS = ForkHooks()
os.register_at_fork(before=FORKS.before, after_in_parent=FORKS.after_in_parent, after_in_child=FORKS.after_in_child)
