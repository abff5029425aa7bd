"""The programs in examples/ run to their end, as often as one likes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.pages import REPOSITORY

NEEDS_VLLM = {"offline_batch.py"}  # run by the tests with a real one
EXAMPLES = sorted(path for path in (REPOSITORY / "examples").glob("*.py") if path.name not in NEEDS_VLLM)


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_twice_in_a_row(example: Path, tmp_path: Path) -> None:
    outputs = []
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-W", "error", str(example)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout)
    assert "Restored from earlier runs" not in outputs[0]
    assert "Restored from earlier runs" in outputs[1]
