"""The store as Parquet files, for analysis: samples in long form, and one file for each kind of record.

``samples-NNNNN.parquet`` has the columns ``target``, ``source``, ``metric_type``, ``metric_name``, ``tags`` (JSON
text), ``timestamp`` (milliseconds, UTC) and ``value`` (float64, bit for bit); a file has at most ten million rows. The
other files are named like the tables; their columns are those of the tables, with packed values unpacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from vllm_monitor.errors import ArchiveError, ConfigurationError
from vllm_monitor.persistence import schema
from vllm_monitor.persistence.archive.archive_reports import ExportReport, Progress
from vllm_monitor.persistence.archive.sample_table import LongSamples, long_samples
from vllm_monitor.persistence.archive.snapshot_reader import SnapshotReader
from vllm_monitor.persistence.archive.store_copy import Bounds
from vllm_monitor.persistence.archive.whole_folder import whole_folder
from vllm_monitor.persistence.codecs.columns import Form, unpack_text
from vllm_monitor.persistence.records.rare_kinds import ALL_KINDS
from vllm_monitor.persistence.records.rare_rows import RareKind, Row

__all__ = ["export_parquet"]

_ROWS_PER_FILE = 10_000_000
_ROWS_PER_GROUP = 1 << 18
_TEXTS = ("target", "source", "metric_type", "metric_name", "tags")


def export_parquet(
    folder: Path, store_id: str, connection: Connection, bounds: Bounds, progress: Progress | None = None
) -> ExportReport:
    """Write what one view of a store shows as Parquet files. Memory is bounded by the largest block.

    Args:
        folder: What to make; missing or empty.
        store_id: The store.
        connection: Its view of the store is fixed.
        bounds: Which records and samples.
        progress: Told how far it is.

    Raises:
        ConfigurationError: When pyarrow is not installed.
        ArchiveError: When the folder holds something, or cannot be written.
    """
    arrow = _arrow()
    source = SnapshotReader(connection, strict=False)
    tables = [schema.metadata.tables[kind.table] for kind in ALL_KINDS]
    total = sum(source.count(table) for table in (*tables, schema.blocks, schema.metrics))
    done = 0

    def advance(rows: int, what: str) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(min(done, total), total, what)

    with whole_folder(folder, _must_be_empty) as work:
        counts = {"samples": _write_samples(arrow, work, long_samples(source, bounds, advance))}
        for kind in ALL_KINDS:
            counts[kind.table] = _write_records(arrow, work, kind, source, bounds, advance)
        size_bytes = sum(path.stat().st_size for path in work.iterdir())
    return ExportReport(str(folder), store_id, counts, size_bytes, source.damaged)


def _write_samples(arrow: Any, work: Path, samples: Iterator[LongSamples]) -> int:
    """All samples, a new file whenever one is full; the number of samples."""
    text = arrow.dictionary(arrow.int32(), arrow.string())
    fields = [(name, text) for name in _TEXTS]
    form = arrow.schema([*fields, ("timestamp", arrow.timestamp("ms", tz="UTC")), ("value", arrow.float64())])
    total = in_file = number = 0
    writer = None
    try:
        for part in samples:
            for at in range(0, len(part.values), _ROWS_PER_GROUP):
                if writer is None or in_file >= _ROWS_PER_FILE:
                    if writer is not None:
                        writer.close()
                    writer = arrow.parquet.ParquetWriter(work / f"samples-{number:05d}.parquet", form)
                    in_file, number = 0, number + 1
                rows = slice(at, at + _ROWS_PER_GROUP)
                columns = [_texts(arrow, part, name, part.series[rows]) for name in _TEXTS]
                columns.append(arrow.array(part.times_ms[rows], type=arrow.timestamp("ms", tz="UTC")))
                columns.append(arrow.array(part.values[rows], type=arrow.float64()))
                writer.write_table(arrow.Table.from_arrays(columns, schema=form))
                in_file += len(part.values[rows])
                total += len(part.values[rows])
    finally:
        if writer is not None:
            writer.close()
    return total


def _texts(arrow: Any, part: LongSamples, name: str, series: NDArray[np.int32]) -> Any:
    texts = part.texts(name)
    return arrow.DictionaryArray.from_arrays(
        arrow.array(series, type=arrow.int32()), arrow.array(texts, arrow.string())
    )


def _write_records(
    arrow: Any,
    work: Path,
    kind: RareKind[Any],
    source: SnapshotReader,
    bounds: Bounds,
    advance: Callable[[int, str], None],
) -> int:
    numbers: dict[Any, Any] = {
        Form.TIME: arrow.float64(),
        Form.REAL: arrow.float64(),
        Form.WHOLE: arrow.int64(),
        Form.FLAG: arrow.bool_(),
    }
    columns = [(name, numbers.get(form, arrow.string())) for name, form in kind.forms.items()]
    form = arrow.schema([*columns, *((name, arrow.string()) for name in kind.derived)])
    written = 0
    with arrow.parquet.ParquetWriter(work / f"{kind.table}.parquet", form) as writer:
        for rows, seen in source.records(kind, bounds.start_time, bounds.end_time):
            if rows:
                writer.write_table(arrow.Table.from_pylist([_plain(kind, row) for row in rows], schema=form))
            written += len(rows)
            advance(seen, kind.table)
    return written


def _plain(kind: RareKind[Any], row: Row) -> Row:
    """The columns of a row that are worth analysing."""
    plain = {name: row[name] for name in (*kind.forms, *kind.derived)}
    for name, form in kind.forms.items():
        if form is Form.PACKED:
            plain[name] = unpack_text(row[name])
        elif form is Form.FLAG and row[name] is not None:
            plain[name] = bool(row[name])
    return plain


def _must_be_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArchiveError(
            f"{folder} exists and is no empty folder; it was not touched",
            hint="Give a folder that does not exist yet, or an empty one.",
        )


def _arrow() -> Any:
    try:
        import pyarrow as pa  # noqa: PLC0415  # an extra, and slow to import
        import pyarrow.parquet  # noqa: PLC0415  # makes pa.parquet
    except ImportError as error:
        raise ConfigurationError(
            "exporting Parquet files needs pyarrow, which is not installed",
            hint="Install it with: pip install 'vllm-monitor[parquet]'",
        ) from error
    return pa
