"""Every Python example of the documentation runs as it stands, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.pages import PAGES, Block, blocks, blocks_of_all

EXAMPLE_URL = "http://127.0.0.1:8000"
# What an example may be labelled with; anything else is a misspelt label that no test looks at.
LANGUAGES = {"python", "sh", "console", "sql", "toml", "json", "jsonl", "text", "mermaid"}


@pytest.mark.parametrize("block", blocks_of_all("python"), ids=str)
def test_examples_run(block: Block, simulator_url: str, monitor_data: Path, tmp_path: Path) -> None:
    shutil.copytree(monitor_data, tmp_path / "monitor_data")
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.text.replace(EXAMPLE_URL, simulator_url)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, f"{block}:\n{result.stderr}"


def test_there_are_examples() -> None:
    assert len(blocks_of_all("python")) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_has_a_known_label(page: Path) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block} is labelled {block.language!r}"
