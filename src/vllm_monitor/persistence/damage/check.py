"""The store's own check: every checksum, and the name of everything that is damaged."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from vllm_monitor.errors import StoreUnavailableError
from vllm_monitor.persistence.backend_detection import database_path
from vllm_monitor.persistence.config import PersistenceConfig
from vllm_monitor.persistence.damage.check_files import CheckedFile, check_documents, check_lines, check_model_files
from vllm_monitor.persistence.damage.check_rows import RowChecker
from vllm_monitor.persistence.damage.sqlite_log import log_is_damaged, log_of
from vllm_monitor.persistence.damage.stored_rows import VERIFIED_TABLES
from vllm_monitor.persistence.migrate import check_revision
from vllm_monitor.persistence.schema import HEAD_REVISION
from vllm_monitor.persistence.sqlite_file import Fault, fault_of, open_for_reading

__all__ = ["CheckReport", "Finding", "Progress", "check_store"]

Progress = Callable[[int, int, str], None]
"""Called with what is done, what there is to do (0: unknown), and what is being done."""

MOST_FINDINGS_PER_TABLE = 1_000
_MOST_SQLITE_FINDINGS = 100
_ROWS_PER_REPORT = 200
_HEALTHY = ("ok",)


@dataclass(frozen=True, slots=True)
class Finding:
    """One damaged thing.

    Args:
        where: The table; ``database`` for the file as a whole, ``log`` for its write-ahead log, and for what lies
            beside it ``model files``, ``lines`` (of the JSON backend), ``guardrails``, ``plugins``, ``strategies``.
        name: Which one: the id of a record; of a block its number, target, source and range of time.
        problem: What is wrong with it.
    """

    where: str
    name: str
    problem: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found.

    Args:
        ok: Nothing is damaged.
        path: The file that was checked.
        revision: The version of its schema.
        findings: All that is damaged, at most a thousand per table.
        left_out: Findings beyond those.
        verified: What was checked and how many of it, damaged ones not counted, by table.
    """

    ok: bool
    path: str
    revision: str
    findings: tuple[Finding, ...] = ()
    left_out: int = 0
    verified: dict[str, int] = field(default_factory=dict)


class _Findings:
    def __init__(self) -> None:
        self.kept: list[Finding] = []
        self.left_out = 0
        self._numbers: dict[str, int] = {}

    def add(self, where: str, name: str, problem: str) -> None:
        number = self._numbers.get(where, 0)
        self._numbers[where] = number + 1
        if number < MOST_FINDINGS_PER_TABLE:
            self.kept.append(Finding(where, name, problem))
        else:
            self.left_out += 1


def check_store(config: PersistenceConfig, *, progress: Progress | None = None) -> CheckReport:
    """Verify everything in a store, without changing it; also beside live writers.

    SQLite's own check of the file, then every row of every table against its checksum, blocks and hot rows
    decoded. What a destroyed page has swallowed is named through the indexes, which lie on other pages.

    Args:
        config: Says where the store is.
        progress: Is told how far the check is.

    Raises:
        StoreUnavailableError: When there is no store, it is of something else, or it cannot be read.
        StoreTooNewError: When a newer version wrote it.
    """
    path = database_path(config)
    if not path.is_file():
        raise StoreUnavailableError(f"there is no store at {path}", hint="Name the storage_dir of the monitor.")
    findings = _Findings()
    verified: dict[str, int] = {}
    revision = ""
    _check_files(chain(check_lines(config), check_documents(config)), findings, verified)
    try:
        with closing(open_for_reading(path, config.durable_timeout_seconds)) as connection:
            revision = _check_file(connection, path, findings, progress)
            _check_log(path, findings)
            _check_tables(connection, findings, verified, progress)
            if revision == HEAD_REVISION:
                _check_files(check_model_files(config, connection), findings, verified)
    except sqlite3.Error as error:
        if fault_of(error) is not Fault.DAMAGED:
            raise StoreUnavailableError(
                f"{path} cannot be checked: {error}", hint="Check its permissions and its disk, and try again."
            ) from error
        findings.add(
            "database",
            path.name,
            f"{error}; nothing in it can be reached: start the monitor, which sets it aside and saves what it can",
        )
    return CheckReport(
        ok=not findings.kept,
        path=str(path),
        revision=revision,
        findings=tuple(findings.kept),
        left_out=findings.left_out,
        verified=verified,
    )


def _check_files(files: Iterable[CheckedFile], findings: _Findings, verified: dict[str, int]) -> None:
    for where, name, problem in files:
        verified.setdefault(where, 0)
        if problem:
            findings.add(where, name, problem)
        else:
            verified[where] += 1


def _check_file(connection: sqlite3.Connection, path: Path, findings: _Findings, progress: Progress | None) -> str:
    """SQLite's own check, and whose file it is; its revision."""
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    revision = None
    if "alembic_version" in names:
        try:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            revision = None if row is None else str(row[0])
        except sqlite3.DatabaseError as error:
            if fault_of(error) is not Fault.DAMAGED:
                raise
        if revision is None:
            findings.add("alembic_version", HEAD_REVISION, "the version of the schema cannot be read")
    if revision is not None or not names & {"metrics", "checkpoints"}:
        check_revision(revision, bool(names), str(path))
    if progress is not None:
        progress(0, 0, "SQLite's own check")
    try:
        for row in connection.execute(f"PRAGMA integrity_check({_MOST_SQLITE_FINDINGS})"):
            if tuple(row) != _HEALTHY:
                findings.add("database", path.name, " ".join(str(row[0]).split()))
    except sqlite3.DatabaseError as error:
        if fault_of(error) is not Fault.DAMAGED:
            raise
        findings.add("database", path.name, str(error))
    return revision or ""


def _check_log(path: Path, findings: _Findings) -> None:
    log = log_of(path)
    if log_is_damaged(log):
        findings.add("log", log.name, "committed transactions lie behind a damaged part of it")


def _check_tables(
    connection: sqlite3.Connection, findings: _Findings, verified: dict[str, int], progress: Progress | None
) -> None:
    present = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    checker = RowChecker(connection)
    tables = [table for table in VERIFIED_TABLES if table in present]
    total = sum(checker.count(table) for table in tables)
    done = 0
    for table in tables:
        intact = 0
        with _view(connection):
            for found in checker.check(table):
                done += 1
                if found is None:
                    intact += 1
                else:
                    findings.add(table, *found)
                if progress is not None and done % _ROWS_PER_REPORT == 0:
                    progress(min(done, total), total, table)
        verified[table] = intact
    if progress is not None:
        progress(total, total, "done")


@contextmanager
def _view(connection: sqlite3.Connection) -> Iterator[None]:
    """One moment of the store: what a live writer does meanwhile must not look like damage."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.rollback()
