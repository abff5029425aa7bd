"""Conditions in the query language of Prometheus, as far as a page of vLLM can say what they speak of.

A small part of CEL is understood: ``&&``, ``||``, ``!``, comparisons, the four basic operations, numbers, names and
brackets; that is all that the names with a counterpart can be used in. Every name becomes an expression whose labels
are ``job`` and ``instance``, so that any two of them match.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vllm_monitor.guardrails.context import VARIABLES
from vllm_monitor.picture import FAMILIES
from vllm_monitor.records.vocabulary import Family, Kind

__all__ = ["NotExpressibleError", "promql_of"]

_TOKEN = re.compile(
    r"\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|('[^']*'|\"[^\"]*\")|(&&|\|\||[<>=!]=|[-+*/()<>!]))"
)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_COMPARISONS = {"<": ">=", ">": "<=", "<=": ">", ">=": "<", "==": "!=", "!=": "=="}
_SHORT, _LONG = "1m", "5m"
"""Windows: Prometheus scrapes every 15 to 60 s, where we look every second and use 10 s and 60 s."""
_BY = "by (job, instance)"
_FAMILIES: Mapping[str, Family] = {family.name: family for family in FAMILIES}
_RATES = {
    "generation_tokens_per_second": "generation_tokens_total",
    "prompt_tokens_per_second": "prompt_tokens_total",
    "engine_steps_per_second": "engine_steps_total",
    "requests_finished_per_second": "requests_finished_total",
    "requests_failed_per_second": "requests_failed_total",
    "preemptions_per_second": "preemptions_total",
    "admission_rejections_per_second": "admission_rejections_total",
    "http_requests_per_second": "http_requests_total",
    "http_server_errors_per_second": "http_server_errors_total",
    "http_client_errors_per_second": "http_client_errors_total",
    "api_cpu_ratio": "api_cpu_seconds_total",
}
_GROWTHS = {
    "api_resident_memory_growth_bytes_per_second": "api_resident_memory_bytes",
    "requests_waiting_growth_per_second": "requests_waiting",
}
_QUANTILE = re.compile(r"(\w+)_p(50|95)_seconds")
_FUNCTIONS = {Kind.GAUGE_MAX: "max", Kind.GAUGE_MIN: "min"}


class NotExpressibleError(ValueError):
    """A condition that a page of vLLM alone cannot say; the text says why."""


def promql_of(expression: str) -> str:
    """The same condition for Prometheus.

    Args:
        expression: CEL, without its ``for``.

    Raises:
        NotExpressibleError: When it speaks of something that is on no page of vLLM, or is more than is understood.
    """
    for name in re.findall(r"[A-Za-z_]\w*", _QUOTED.sub("", expression)):
        if name in VARIABLES:
            _value(name)  # what is on no page is a better reason than how it is spoken of
    parser = _Parser(expression)
    node = parser.alternatives()
    parser.expect_end()
    if not node.is_condition:
        raise NotExpressibleError("it compares nothing")
    return node.text


@dataclass(frozen=True, slots=True)
class _Node:
    """A part of an expression.

    Args:
        text: PromQL.
        is_condition: Whether it is a question; else it is a value.
        negated: The opposite question.
        is_number: Whether it is a plain number, which has no labels.
    """

    text: str
    is_condition: bool
    negated: str = ""
    is_number: bool = False


class _Parser:
    def __init__(self, expression: str) -> None:
        self._tokens: list[str] = []
        at = 0
        while at < len(expression.rstrip()):
            found = _TOKEN.match(expression, at)
            if found is None:
                raise NotExpressibleError(f"{expression[at:].strip()[:20]!r} has no counterpart")
            self._tokens.append(found[0].strip())
            at = found.end()
        self._at = 0

    def expect_end(self) -> None:
        if self._next():
            raise NotExpressibleError(f"{self._next()!r} has no counterpart")

    def alternatives(self) -> _Node:
        node = self._all()
        while self._take("||"):
            node = _joined(node, "or", "and", self._all())
        return node

    def _all(self) -> _Node:
        node = self._comparison()
        while self._take("&&"):
            node = _joined(node, "and", "or", self._comparison())
        return node

    def _comparison(self) -> _Node:
        left = self._sum()
        sign = self._next()
        if sign not in _COMPARISONS:
            return left
        self._at += 1
        right = self._sum()
        if left.is_condition or right.is_condition:
            raise NotExpressibleError("it compares the answer of a question")
        if left.is_number and right.is_number:
            raise NotExpressibleError("it compares only numbers")
        return _Node(
            f"{left.text} {sign} {right.text}",
            is_condition=True,
            negated=f"{left.text} {_COMPARISONS[sign]} {right.text}",
        )

    def _sum(self) -> _Node:
        node = self._product()
        while sign := self._take("+", "-"):
            node = _computed(node, sign, self._product())
        return node

    def _product(self) -> _Node:
        node = self._unary()
        while sign := self._take("*", "/"):
            node = _computed(node, sign, self._unary())
        return node

    def _unary(self) -> _Node:
        if self._take("!"):
            node = self._unary()
            if not node.is_condition:
                raise NotExpressibleError("it negates a value")
            return _Node(node.negated, is_condition=True, negated=node.text)
        if self._take("-"):
            node = self._unary()
            return _Node(f"-{node.text}", is_condition=False, is_number=node.is_number)
        if self._take("("):
            node = self.alternatives()
            if not self._take(")"):
                raise NotExpressibleError("a bracket is missing")
            return _Node(f"({node.text})", node.is_condition, f"({node.negated})", node.is_number)
        token = self._next()
        self._at += 1
        if token[:1].isdigit():
            return _Node(_number(token), is_condition=False, is_number=True)
        if token[:1].isalpha() or token[:1] == "_":
            return _Node(_value(token), is_condition=False)
        raise NotExpressibleError(f"{token!r} has no counterpart")

    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        token = self._next()
        if token not in wanted:
            return ""
        self._at += 1
        return token


def _joined(left: _Node, word: str, opposite: str, right: _Node) -> _Node:
    if not (left.is_condition and right.is_condition):
        raise NotExpressibleError("it takes a value for a question")
    return _Node(
        f"({left.text}) {word} ({right.text})",
        is_condition=True,
        negated=f"({left.negated}) {opposite} ({right.negated})",
    )


def _computed(left: _Node, sign: str, right: _Node) -> _Node:
    if left.is_condition or right.is_condition:
        raise NotExpressibleError("it computes with the answer of a question")
    return _Node(f"{left.text} {sign} {right.text}", is_condition=False, is_number=left.is_number and right.is_number)


def _number(token: str) -> str:
    return f"{float(token):g}" if float(f"{float(token):g}") == float(token) else repr(float(token))


def _value(name: str) -> str:
    """What a canonical name is on the page."""
    family = _FAMILIES.get(name)
    if family is not None and family.kind is not Kind.HISTOGRAM:
        return _aggregated(family, _selector(family))
    if name in _RATES:
        family = _FAMILIES[_RATES[name]]
        return _aggregated(family, f"rate({_selector(family)}[{_SHORT}])")
    if name in _GROWTHS:
        family = _FAMILIES[_GROWTHS[name]]
        return _aggregated(family, f"deriv({_selector(family)}[{_LONG}])")
    quantile = _QUANTILE.fullmatch(name)
    family = _FAMILIES.get(f"{quantile[1]}_seconds") if quantile else None
    if quantile is not None and family is not None:
        buckets = _selector(family, "_bucket")
        return f"histogram_quantile(0.{quantile[2]}, sum by (job, instance, le) (rate({buckets}[{_LONG}])))"
    if name == "prefix_cache_hit_ratio":
        hits, queries = _FAMILIES["prefix_cache_hits_total"], _FAMILIES["prefix_cache_queries_total"]
        parts = (_aggregated(one, f"rate({_selector(one)}[{_LONG}])") for one in (hits, queries))
        return f"({' / '.join(parts)})"
    if name == "scrape_duration_seconds":
        return f"sum {_BY} (scrape_duration_seconds)"
    raise NotExpressibleError(f"{name} is on no page of vLLM")


def _selector(family: Family, ending: str = "") -> str:
    names = [f"{alias}{ending}" for alias in family.aliases]
    label = ""
    if family.label is not None:
        starts = "|".join(family.label[1])
        label = f'{family.label[0]}=~"({starts}).*"'
    if len(names) == 1:
        return f"{names[0]}{{{label}}}" if label else names[0]
    either = f'__name__=~"{"|".join(names)}"'
    return f"{{{either}{f',{label}' if label else ''}}}"


def _aggregated(family: Family, inner: str) -> str:
    return f"{_FUNCTIONS.get(family.kind, 'sum')} {_BY} ({inner})"
