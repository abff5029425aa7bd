"""All checks together: order, failures of a check, secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.doctor.subjects import CPU_BUILD, make_subject

from vllm_monitor.doctor import CHECKS, Finding, Fix, FixResult, Level, apply_fixes, examination, examine, worst_of


def test_the_worst_comes_first_and_every_check_speaks(tmp_path: Path) -> None:
    command = f"VLLM_SERVER_DEV_MODE=1 vllm serve {tmp_path}/absent -tp 2"
    findings = examine(make_subject(command, storage_dir=tmp_path))
    weights = [one.level.weight for one in findings]
    assert weights == sorted(weights, reverse=True)
    assert {one.check for one in findings} == set(CHECKS)
    assert worst_of(findings) is Level.PROBLEM


def test_a_check_that_fails_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> Any:
        raise RuntimeError("a strange file")

    monkeypatch.setattr(examination, "CHECKS", {"memory": fail, "port": CHECKS["port"]})
    findings = examine(make_subject(port=70_000))
    assert [(one.check, one.level) for one in findings] == [("port", Level.PROBLEM), ("memory", Level.UNKNOWN)]
    assert "a strange file" in findings[1].message


@given(st.lists(st.sampled_from(list(Level))))
def test_the_worst_of_findings(found: list[Level]) -> None:
    worst = worst_of(Finding("a", level, "b") for level in found)
    assert worst in [*found, Level.OK]
    assert all(worst.weight >= level.weight for level in found)


def test_no_secret_gets_out(tmp_path: Path) -> None:
    secrets = ["k3y-on-the-line", "k3y-of-a-list", "t0ken-of-the-hub", "k3y-in-the-variable"]
    command = (
        f"HF_TOKEN={secrets[2]} VLLM_API_KEY={secrets[3]} VLLMMON_APIKEY={secrets[3]} "
        f"vllm serve {tmp_path}/{secrets[2]} --api-key {secrets[0]} {secrets[1]} --host {secrets[2]}"
    )
    findings = examine(make_subject(command, installation=CPU_BUILD, storage_dir=tmp_path))
    said = repr(findings)
    assert "[redacted]" in said  # the path and the host were spoken of
    assert not any(secret in said for secret in secrets)


def test_a_key_that_is_a_word_leaves_the_words_alone(tmp_path: Path) -> None:
    findings = examine(make_subject(f"vllm serve {tmp_path}/absent --api-key vllm", storage_dir=tmp_path))
    assert "redacted" not in repr(findings)


def test_a_fix_is_redacted_and_done(monkeypatch: pytest.MonkeyPatch) -> None:
    fix = Fix("remove t0ken-of-the-hub", lambda: FixResult(done=True, text="removed"))
    monkeypatch.setattr(examination, "CHECKS", {"a": lambda _: iter([Finding("a", Level.NOTE, "b", fix=fix)])})
    findings = examine(make_subject(environment={"HF_TOKEN": "t0ken-of-the-hub"}))
    assert findings[0].fix is not None
    assert findings[0].fix.what == "remove [redacted]"
    ((finding, result),) = apply_fixes(findings)
    assert (finding, result.text) == (findings[0], "removed")
