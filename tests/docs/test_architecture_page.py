"""docs/architecture.md shows the floors, rooms and dependencies that there are."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.docs.pages import DOCS, PAGES, REPOSITORY, blocks, code_spans, prose, section, table_rows

import vllm_monitor

PAGE = DOCS / "architecture.md"
PACKAGE = Path(vllm_monitor.__file__).parent


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))


def test_floors() -> None:
    (layers,) = (
        contract["layers"] for contract in project()["tool"]["importlinter"]["contracts"] if "layers" in contract
    )
    assert "\n".join(layers) + "\n" in [block.text for block in blocks(PAGE)]


def test_rooms() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    documented = {code_spans(row[0])[0] for row in table_rows(section(PAGE, "Rooms"))[1:]}
    assert documented == rooms - {"__init__"}


def test_doors_can_be_imported() -> None:
    for row in table_rows(section(PAGE, "Rooms"))[1:]:
        (room,) = code_spans(row[0])
        module = __import__(f"vllm_monitor.{room}", fromlist=["*"])
        for name in code_spans(row[2]):
            assert hasattr(module, name)


def test_dependencies() -> None:
    extras = project()["project"]["optional-dependencies"]
    required = project()["project"]["dependencies"] + extras["gpu"] + extras["parquet"]
    names = {re.split(r"[<>=!~;\[ ]", requirement)[0] for requirement in required}
    documented = {name for row in table_rows(section(PAGE, "Dependencies"))[1:] for name in code_spans(row[0])}
    assert documented - {"gpu", "parquet"} == names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    for span in code_spans("\n".join(prose(page))):
        if re.fullmatch(r"(src|tests|tools|docs|benchmarks)/[\w./-]*", span):
            assert (REPOSITORY / span).exists(), f"{page.name} names {span}"
