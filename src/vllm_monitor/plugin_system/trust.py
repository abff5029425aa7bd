"""The list of sources that the operator trusts: sha256 sums in a file outside of every store."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_monitor.clock import Clock, SystemClock
from vllm_monitor.errors import ConfigurationError, StorageError, StoreUnavailableError
from vllm_monitor.persistence import PersistenceConfig, private_file
from vllm_monitor.persistence.file_locks import locked
from vllm_monitor.persistence.private_folder import make_private_folder

__all__ = ["TrustList", "default_trust_file", "sha256_of", "trust_list_of"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LOCK_SECONDS = 5.0


def sha256_of(source: str) -> str:
    """What trust in a source goes by."""
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def default_trust_file() -> Path:
    """``VLLMMON_TRUST_FILE``, or ``vllm-monitor/trusted_plugins.json`` in the user's folder of settings."""
    given = os.environ.get("VLLMMON_TRUST_FILE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "vllm-monitor" / "trusted_plugins.json"


@dataclass(slots=True)
class _Content:
    trusted: dict[str, dict[str, Any]] = field(default_factory=dict)
    followed: dict[str, dict[str, str]] = field(default_factory=dict)


class TrustList:
    """Which plugin sources may run. Thread-safe, and safe between processes; never exported or imported.

    A source is trusted in a store: what comes into another one, by an import say, waits for trust there. Files are
    followed for one store, too.

    Args:
        path: The file (0600); ``None`` keeps the list in memory.
        store: Which store this is about: its folder.
        clock: Where time comes from.
    """

    def __init__(self, path: Path | None, *, store: str = "", clock: Clock | None = None) -> None:
        self.path = path
        self._store = store
        self._clock = clock if clock is not None else SystemClock()
        self._in_memory = _Content()

    def problem(self) -> str:
        """Why nothing in the file is believed; empty when it is well, or not there yet."""
        try:
            self._read()
        except StorageError as error:
            return str(error)
        return ""

    def is_trusted(self, sha256: str) -> bool:
        """Whether the operator trusts a source; a file that cannot be believed trusts nothing."""
        return sha256 in self.trusted()

    def trusted(self) -> frozenset[str]:
        """All of them."""
        trusted = self._believed().trusted
        return frozenset(sha256 for sha256, entry in trusted.items() if self._is_used(entry))

    def followed(self) -> dict[str, str]:
        """File to the name of the plugin whose newest content the operator trusts in advance."""
        followed = self._believed().followed
        return {path: one["name"] for path, one in followed.items() if one["store"] == self._store}

    def trust(self, sha256: str, name: str, *, follow: Path | None = None, unfollow: bool = False) -> None:
        """Trust a source; durable on return.

        Args:
            sha256: Its sum.
            name: The plugin's name, for whoever reads the file.
            follow: Trust whatever stands in this file from now on, too.
            unfollow: Follow no other file for that name any more.

        Raises:
            StoreUnavailableError: When the file cannot be written or believed.
        """

        def change(content: _Content) -> None:
            entry = content.trusted.setdefault(sha256, {"trusted_at": self._clock.now(), "uses": []})
            use = {"name": name, "store": self._store}
            if use not in entry["uses"]:
                entry["uses"].append(use)
            if unfollow:
                self._unfollow(content, name)
            if follow is not None:
                content.followed[str(follow)] = {"name": name, "store": self._store}

        self._change(change)

    def distrust(self, sha256: str, name: str, *, unfollow: bool = True) -> None:
        """Take a source off the list, unless it has another name here, and follow no file for that name.

        Raises:
            StoreUnavailableError: When the file cannot be written or believed.
        """

        def change(content: _Content) -> None:
            entry = content.trusted.get(sha256)
            if entry is not None:
                entry["uses"] = [use for use in entry["uses"] if use != {"name": name, "store": self._store}]
                if not entry["uses"]:
                    del content.trusted[sha256]
            if unfollow:
                self._unfollow(content, name)

        self._change(change)

    def _is_used(self, entry: Mapping[str, Any]) -> bool:
        return any(use["store"] == self._store for use in entry["uses"])

    def _unfollow(self, content: _Content, name: str) -> None:
        given_up = {"name": name, "store": self._store}
        content.followed = {path: one for path, one in content.followed.items() if one != given_up}

    def _believed(self) -> _Content:
        try:
            return self._read()
        except StorageError:
            return _Content()

    def _read(self) -> _Content:
        if self.path is None:
            return self._in_memory
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return _Content()
        except OSError as error:
            raise self._unusable(f"cannot be read: {error}") from error
        with os.fdopen(descriptor, "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise self._unusable("is no plain file")
            if facts.st_uid not in (os.geteuid(), 0) or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise self._unusable("can be written by others")
            try:
                return _parsed(json.loads(file.read(1 << 24)))
            except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
                raise self._unusable(f"is damaged: {error}") from error

    def _change(self, change: Any) -> None:
        if self.path is None:
            change(self._in_memory)
            return
        try:
            make_private_folder(self.path.parent)
            with locked(self.path.with_name(f"{self.path.name}.lock"), _LOCK_SECONDS):
                content = self._read()
                change(content)
                whole = {"version": 1, "trusted": content.trusted, "followed": content.followed}
                private_file.write_whole(self.path, json.dumps(whole, indent=2).encode() + b"\n")
        except OSError as error:
            raise self._unusable(f"cannot be written: {error}") from error

    def _unusable(self, why: str) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"the list of trusted plugins {self.path} {why}",
            hint="mend it, or remove it and trust your plugins again; VLLMMON_TRUST_FILE names another",
        )


def _parsed(whole: Any) -> _Content:
    if whole.get("version", 1) != 1:
        msg = "a newer version of vllm-monitor wrote it"
        raise ValueError(msg)
    trusted = {
        key: {**value, "uses": [{"name": str(use["name"]), "store": str(use["store"])} for use in value["uses"]]}
        for key, value in whole["trusted"].items()
        if _SHA256.fullmatch(key)
    }
    followed = {
        str(path): {"name": str(one["name"]), "store": str(one["store"])} for path, one in whole["followed"].items()
    }
    return _Content(trusted, followed)


def trust_list_of(settings: PersistenceConfig, clock: Clock | None = None) -> TrustList:
    """The list for a store: in its ``trust_file``, or at the default place.

    Raises:
        ConfigurationError: When that lies in the store: whoever gives us a store could then trust it as well.
    """
    store = settings.storage_dir.resolve()
    path = default_trust_file() if settings.trust_file is None else settings.trust_file
    is_chosen = settings.trust_file is not None or "VLLMMON_TRUST_FILE" in os.environ
    # A store may be a home folder; the default place is then below it, and not in it.
    if path.resolve().parent == store or (is_chosen and path.resolve().is_relative_to(store)):
        raise ConfigurationError(
            f"the list of trusted plugins {path} lies in the store {store}",
            hint="name a file outside of it: trust_file in the store's settings, or VLLMMON_TRUST_FILE",
        )
    return TrustList(path, store=str(store), clock=clock)
