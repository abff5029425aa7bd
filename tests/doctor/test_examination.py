"""All checks together: order, failures of a check, secrets."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.doctor.subjects import CPU_BUILD, make_subject

from vllm_monitor.doctor import (
    CHECKS,
    RULES,
    Finding,
    Fix,
    FixResult,
    Level,
    apply_fixes,
    examination,
    examine,
    parse_launch,
    worst_of,
)
from vllm_monitor.doctor.secrets import may_be_secret, without_secrets
from vllm_monitor.records import HappyPath

NAMES = [
    *((name, True) for name in ("api-key", "api_ke", "api-", "hf-tok", "some-passw", "x.pass", "x-secr", "a-priv-ke")),
    *((name, False) for name in ("model", "seed", "dtype", "max-num-seqs", "max-num-batched-tokens", "host", "port")),
    *((name, False) for name in ("tokenizer", "tokenizer-mode", "timeout-sec", "kv-cache-dtype", "prefix-caching")),
]


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


SECRET = "s3kr1t-4711xyz"


@pytest.mark.parametrize(
    "words",
    [
        [f"https://u:{SECRET}@host/a/b"],
        [f"s3://b/m?token={SECRET}"],
        [f"u:{SECRET}@host/a/b"],
        [f"{SECRET}/m", "--hf-tok", SECRET],
        ["m", "--host", f"u:{SECRET}"],
        ["m", "--host", f"u:{SECRET}@h"],
        ["m", "--api-ke", SECRET],
        ["m", "--api_ke", SECRET],
        ["m", f"--hf-tok={SECRET}"],
        ["m", "--ssl-keyfile-pass", SECRET],
        ["m", "--some-passw", SECRET],
        ["m", "--kv-transfer-config", f'{{"kv_connector_extra_config":{{"password":"{SECRET}"}}}}'],
        ["m", "--kv-transfer-config.kv_connector_extra_config.password", SECRET],
        ["m", "--otlp-traces-endpoint", f"http://u:{SECRET}@h/"],
        ["m", "--hf-overrides", f"token={SECRET}"],
        ["m", "--mm-encoder", f"Bearer {SECRET}"],
        ["m", "--download-dir", f"/srv/{SECRET}", "--api-k", SECRET],
    ],
)
def test_no_secret_of_a_command_gets_out(words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = {"arguments": {"model": words[0]}, "models": [words[0]]}
    for paths in ([], [HappyPath("1", "good", [], {}, [], metadata={"fingerprint": known})]):
        subject = make_subject(storage_dir=tmp_path, happy_paths=paths)
        launch = parse_launch(["vllm", "serve", *words], {})
        findings = examine(replace(subject, launch=launch))
        said = repr(findings) + json.dumps([dict(one.data) for one in findings], default=str)
        assert SECRET not in said + caplog.text


def test_what_a_failing_check_and_a_fix_say_is_without_secrets(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> Any:
        raise OSError(36, "File name too long", f"https://u:{SECRET}@host/x")

    fix = Fix("end it", lambda: FixResult(done=True, text=f"ended vllm serve m --api-ke {SECRET}"))
    checks = {"memory": fail, "a": lambda _: iter([Finding("a", Level.NOTE, "b", fix=fix)])}
    monkeypatch.setattr(examination, "CHECKS", checks)
    findings = examine(make_subject())
    ((_, result),) = apply_fixes(findings)
    assert result.text == "ended vllm serve m --api-ke [redacted]"
    assert "could not be looked at" in findings[0].message
    assert SECRET not in repr(findings) + caplog.text


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("at https://u:pass-1@host/a", "at https://u:[redacted]@host/a"),
        ("at https://u:pa/ss-1@host/a", "at https://u:[redacted]@host/a"),
        ("of u:pass-1@host", "of u:[redacted]@host"),
        ("--hf-tok pass-1 --port 80", "--hf-tok [redacted] --port 80"),
    ],
)
def test_the_rest_of_what_is_said_stays(said: str, shown: str) -> None:
    assert without_secrets(said) == shown


def test_differences_in_secrets_alone_are_none() -> None:
    given = {"kv-transfer-config": '{"password":"[redacted]"}', "model": "m"}
    path = HappyPath("1", "good", [], {}, [], metadata={"fingerprint": {"arguments": given, "models": ["m"]}})
    command = f'vllm serve m --kv-transfer-config {{"password":"{SECRET}"}} --hf-tok {SECRET}'
    found = [one for one in examine(make_subject(command, happy_paths=[path])) if one.check == "history"]
    assert [one.data["different_flags"] for one in found] == [[]]


@pytest.mark.parametrize(("name", "expected"), NAMES)
def test_names_of_options_that_may_be_secret(name: str, expected: bool) -> None:
    assert may_be_secret(name) is expected


def test_what_is_said_of_every_rule_is_no_secret() -> None:
    for rule in RULES:
        assert without_secrets(f"{rule.message} {rule.advice}") == f"{rule.message} {rule.advice}"


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
