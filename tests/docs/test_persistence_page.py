"""docs/persistence.md names every table, column and setting of the store, and its queries run."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.docs.pages import DOCS, Block, blocks, code_spans, section, table_rows

from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.persistence.samples.scrape_codec import DELTA, KEYFRAME, KEYFRAME_INTERVAL, LOOSE
from vllm_monitor.persistence.schema import HEAD_REVISION, metadata

PAGE = DOCS / "persistence.md"


def test_tables_and_columns() -> None:
    documented: dict[str, list[str]] = {}
    table = ""
    for first, columns, _ in (row for row in table_rows(section(PAGE, "Tables")) if row[0] != "table"):
        table = first.strip("`") or table
        documented.setdefault(table, []).extend(code_spans(columns))
    assert {name: sorted(columns) for name, columns in documented.items()} == {
        table.name: sorted(column.name for column in table.columns) for table in metadata.sorted_tables
    }
    assert f"`{HEAD_REVISION}`" in section(PAGE, "Tables")


def test_numbers_of_the_format() -> None:
    assert (KEYFRAME, DELTA, LOOSE) == (1, 2, 3)
    assert f"Every {KEYFRAME_INTERVAL} rows a\nkeyframe" in section(PAGE, "A scrape")


def test_settings() -> None:
    documented: dict[str, Any] = {}
    for names, defaults, _ in table_rows(section(PAGE, "Settings"))[1:]:
        fields, values = code_spans(names), [value.strip(" `") for value in defaults.split(",")]
        documented.update(zip(fields, values * len(fields) if len(values) == 1 else values, strict=False))
    assert set(documented) == set(PersistenceConfig.model_fields)
    for name, field in PersistenceConfig.model_fields.items():
        written, default = documented[name], field.default
        if default is None:
            assert written in {"none", ""}
        elif isinstance(default, bool):
            assert written == str(default).lower()
        elif isinstance(default, (int, float)):
            assert float(written) == default
        else:
            assert written in {str(default), ""}


@pytest.mark.parametrize("block", [block for block in blocks(PAGE) if block.language == "sql"], ids=str)
def test_queries_run(block: Block, monitor_data: Path) -> None:
    assert re.fullmatch(r"SELECT[^;]*;\s*", block.text)
    with closing(sqlite3.connect(f"file:{monitor_data / 'monitor.db'}?mode=ro", uri=True)) as database:
        rows = database.execute(block.text).fetchall()
    rare = ("'stalled'", "severity", "FROM predictions", "FROM mitigation_attempts")
    assert rows or any(words in block.text for words in rare)


def test_the_decoder_reads_what_we_read(
    monitor_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (decoder,) = (block.text for block in blocks(PAGE) if block.language == "python" and "payload" in block.text)
    monkeypatch.chdir(monitor_data.parent)
    names: dict[str, Any] = {}
    exec(compile(decoder, str(PAGE), "exec"), names)  # noqa: S102  # our own page
    names["database"].close()
    theirs = {line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()}
    with PersistenceManager(PersistenceConfig(storage_dir=monitor_data)) as store:
        ours = {
            f"{sample['metric_name']}{json.dumps(sample['tags'], separators=(',', ':'))} {sample['value']}"
            for sample in store.latest()
        }
    assert len(ours) > 400
    assert ours <= theirs
