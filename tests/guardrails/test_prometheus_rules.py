"""Guardrails as a rules file of Prometheus: what is in it, what it says, and what it cannot say."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import promql_parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_monitor.guardrails import METRICS, GuardrailPolicy, builtin_policies, prometheus_rules
from vllm_monitor.guardrails.promql import NotExpressibleError, promql_of

PROMTOOL = shutil.which("promtool")
EXPRESSION = re.compile(r"^        expr: (.*)$", re.MULTILINE)


@pytest.mark.parametrize(
    ("cel", "promql"),
    [
        ("requests_waiting > 20.0", "sum by (job, instance) (vllm:num_requests_waiting) > 20"),
        (
            "kv_cache_usage_ratio >= 0.95",
            'max by (job, instance) ({__name__=~"vllm:kv_cache_usage_perc|vllm:gpu_cache_usage_perc"}) >= 0.95',
        ),
        (
            "http_server_errors_per_second > 0.1 * http_requests_per_second",
            (
                'sum by (job, instance) (rate(http_requests_total{status=~"(5).*"}[1m]))'
                " > 0.1 * sum by (job, instance) (rate(http_requests_total[1m]))"
            ),
        ),
        (
            "time_to_first_token_p95_seconds > 2.0",
            (
                "histogram_quantile(0.95, sum by (job, instance, le)"
                " (rate(vllm:time_to_first_token_seconds_bucket[5m]))) > 2"
            ),
        ),
        (
            "!(requests_running > 1.0 && requests_waiting < 2.0)",
            (
                "((sum by (job, instance) (vllm:num_requests_running) <= 1)"
                " or (sum by (job, instance) (vllm:num_requests_waiting) >= 2))"
            ),
        ),
    ],
)
def test_conditions(cel: str, promql: str) -> None:
    assert promql_of(cel) == promql


@pytest.mark.parametrize(
    ("cel", "why"),
    [
        ("condition == 'stalled'", "condition is on no page"),
        ("requests_waiting > 1.0 && labels.team == 'a'", "labels is on no page|counterpart"),
        ("progress_age_seconds > 3.0", "progress_age_seconds is on no page"),
        ("[1.0].exists(x, x > requests_waiting)", "counterpart"),
        ("1.0 > 2.0", "only numbers"),
        ("requests_waiting > 1.0 ? true : false", "counterpart"),
        ("requests_waiting", "compares nothing"),
    ],
)
def test_what_cannot_be_said_has_a_reason(cel: str, why: str) -> None:
    with pytest.raises(NotExpressibleError, match=why):
        promql_of(cel)


numbers = st.floats(min_value=0, max_value=1e12).map(lambda number: repr(float(number)))
names = st.sampled_from(sorted(METRICS))
terms = st.recursive(
    st.one_of(numbers, names),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
    max_leaves=4,
)
comparisons = st.tuples(terms, st.sampled_from(["<", ">", "<=", ">=", "==", "!="]), terms).map(" ".join)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["&&", "||"]), inner).map(lambda p: f"({p[0]}) {p[1]} ({p[2]})"),
        inner.map(lambda one: f"!({one})"),
    ),
    max_leaves=4,
)


@given(conditions)
def test_whatever_is_said_is_promql(cel: str) -> None:
    try:
        said = promql_of(cel)
    except NotExpressibleError:
        return
    promql_parser.parse(said)


def test_every_built_in_one_is_there_or_is_named_with_the_reason() -> None:
    policies = builtin_policies()
    rules = prometheus_rules(policies)
    assert {*rules.exported, *rules.left_out} == {policy.name for policy in policies}
    assert {"engine_stall", "kv_cache_exhausted", "ttft_over_objective", "server_errors"} <= set(rules.exported)
    for name, reason in rules.left_out.items():
        assert f"#   {name}: {reason}" in rules.text
    expressions = [json.loads(one) for one in EXPRESSION.findall(rules.text)]
    assert len(expressions) == len(rules.exported)
    for expression in expressions:
        assert "vllm:" in expression  # none speaks of other people's servers
        promql_parser.parse(expression)


def test_own_ones_disabled_ones_and_hostile_text() -> None:
    hostile = GuardrailPolicy(
        "mine", 'a "quoted"\nline {{ $value }} # x', "requests_waiting > 3.0 for 90s", severity="info"
    )
    off = GuardrailPolicy("off\n- alert: x", "off", "requests_waiting > 3.0", enabled=False)
    rules = prometheus_rules([hostile, off])
    assert rules.exported == ("mine",)
    assert "for: 90s" in rules.text
    assert "\n- alert: x" not in rules.text
    assert '{{\\"{{\\"}} $value' in rules.text  # what a template makes of it is what was written
    assert prometheus_rules([]).text.endswith("rules: []\n")


texts = st.text(max_size=8) | st.sampled_from(["{{", "{{{", "}}", "{{ $x }}", '"', "\\", "\u2028", "\x85", "\ud83d"])


@settings(max_examples=15)
@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, which comes with Prometheus")
@given(st.lists(st.tuples(texts, texts, texts, st.booleans()), max_size=5))
def test_whatever_people_write_is_a_rules_file(given_texts: list[tuple[str, str, str, bool]]) -> None:
    policies = [
        GuardrailPolicy(
            name or "x", description, "requests_waiting > 3.0 for 9999999d", enabled=on, metadata={"runbook": runbook}
        )
        for name, description, runbook, on in given_texts
    ]
    policies += [replace(policy, condition="requests_waiting > 3.0 for 30s") for policy in policies]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rules.yml"
        path.write_text(prometheus_rules(policies).text, encoding="utf-8")
        done = subprocess.run([str(PROMTOOL), "check", "rules", str(path)], capture_output=True, text=True, check=False)
    is_well = done.returncode == 0 or "duplicate rule" in done.stdout + done.stderr
    assert is_well, done.stdout + done.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, which comes with Prometheus")
def test_prometheus_takes_them_and_they_fire(tmp_path: Path) -> None:
    """Two minutes of work with a full cache, then a stall; another service that is down is none of our business."""
    rules = prometheus_rules(builtin_policies())
    (tmp_path / "rules.yml").write_text(rules.text)
    pages = {
        'vllm:num_requests_running{job="v", instance="a"}': "4x40",
        'vllm:num_requests_waiting{job="v", instance="a"}': "20x40",
        'vllm:generation_tokens_total{job="v", instance="a"}': "0+1000x10 10000x30",
        'vllm:iteration_tokens_total_count{job="v", instance="a"}': "0+100x10 1000x30",
        'vllm:kv_cache_usage_perc{job="v", instance="a"}': "0.97x40",
        'up{job="v", instance="a"}': "1x40",
        'up{job="other", instance="b"}': "0x40",
        'process_start_time_seconds{job="v", instance="a"}': "1x40",
    }
    expressions = dict(zip(rules.exported, map(json.loads, EXPRESSION.findall(rules.text)), strict=True))
    cases = [
        {
            "expr": f"count({expression}) or vector(0)",
            "eval_time": at,
            "exp_samples": [{"labels": "{}", "value": int(name in firing)}],
        }
        for at, firing in (("2m", {"kv_cache_exhausted"}), ("9m", {"kv_cache_exhausted", "engine_stall"}))
        for name, expression in expressions.items()
    ]
    series = [{"series": name, "values": values} for name, values in pages.items()]
    tests = [{"interval": "15s", "input_series": series, "promql_expr_test": cases}]
    unit = {"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": tests}
    (tmp_path / "test.yml").write_text(json.dumps(unit))
    for arguments in (["check", "rules", "rules.yml"], ["test", "rules", "test.yml"]):
        done = subprocess.run([str(PROMTOOL), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
