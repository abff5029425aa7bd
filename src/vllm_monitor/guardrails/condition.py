"""Conditions: a CEL expression, optionally ``for`` some time; checked when they are registered.

CEL (https://cel.dev) cannot loop without end, call Python or touch anything but its context. It does not check types
before it runs, so a condition is also evaluated once against an example in which every documented name has a value of
its type.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import cel

from vllm_monitor.errors import InvalidConditionError
from vllm_monitor.guardrails.context import FUNCTIONS, VARIABLES, example_context

__all__ = ["CompiledCondition"]

MOST_CHARACTERS = 2_000
MOST_NESTING = 50
MOST_MACROS = 2
"""A macro walks a list; two within each other are quick, five need not be."""

_FOR = re.compile(r"\s+for\s+(?P<number>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>ms|s|m|h|d)\s*\Z")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_MACRO = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(")
_MACRO_VARIABLE = re.compile(r"\.\s*(?:all|exists|exists_one|map|filter)\s*\(\s*([A-Za-z_]\w*)\s*,")
_PLACE = re.compile(r"ERROR: <input>:(\d+):(\d+): (?:Syntax error: )?([^\n]*?)(?: expecting \{.*)?(?:\n|$)")
_COMPARED = re.compile(
    r"\b(state|condition)\s*(?:==|!=)\s*(['\"])(.*?)\2|(['\"])([^'\"]*)\4\s*(?:==|!=)\s*\b(state|condition)\b"
)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


class CompiledCondition:
    """A condition that was parsed and tried. Immutable; safe to share between threads.

    Args:
        text: The condition, for example ``requests_waiting > 20.0 && kv_cache_usage_ratio > 0.9 for 30s``.

    Raises:
        InvalidConditionError: When it is no text, cannot be parsed, speaks of something that is not there, or does
            not say yes or no.
    """

    __slots__ = ("_program", "expression", "hold_seconds", "names", "text")

    def __init__(self, text: str) -> None:
        if callable(text):
            raise InvalidConditionError(
                "a condition is a text, not a function: it is stored and must not run code",
                hint='write it as an expression, for example "kv_cache_usage_ratio > 0.95 for 30s"',
            )
        if not isinstance(text, str) or not text.strip():
            raise InvalidConditionError(
                "the condition is empty or no text", hint='for example "requests_waiting > 20.0 for 30s"'
            )
        self.text = text
        held = _FOR.search(text)
        self.expression = text[: held.start()] if held else text
        self.hold_seconds = float(held["number"]) * _UNIT_SECONDS[held["unit"]] if held else 0.0
        self._program = _parsed(self.expression)
        macro_variables = set(_MACRO_VARIABLE.findall(self.expression))
        self.names = frozenset(self._program.variables()) - macro_variables
        _check_names(self.expression, self.names, self._program.functions())
        self._try()

    def evaluate(self, context: cel.Context) -> bool | None:
        """Whether it is met; ``None`` when that cannot be said, because something it needs is not known now."""
        try:
            found = self._program.execute(context)
        except (RuntimeError, KeyError, TypeError, ValueError, ZeroDivisionError):
            return None  # it was well with the example: a name is absent, or a label is
        return found if isinstance(found, bool) else None

    def figures(self, values: Mapping[str, float]) -> dict[str, float]:
        """The metric values among ``values`` that it speaks of."""
        return {name: values[name] for name in sorted(self.names) if name in values}

    def _try(self) -> None:
        context = example_context()
        for part in [*_operands(self.expression), self.expression]:
            # Each part by itself as well: what stands behind a false && is not looked at otherwise.
            found = _tried(part, context, self.names)
        if found is not None and not isinstance(found, bool):
            raise InvalidConditionError(
                f"the condition {self.expression!r} gives {found!r}, not true or false",
                hint="compare it with something, for example with > or ==",
            )


def _tried(part: str, context: cel.Context, names: Iterable[str]) -> Any:
    """What a part gives with the example; ``None`` when it asks for a label that the example does not have."""
    try:
        return cel.compile(part).execute(context)
    except KeyError:
        return None
    except TypeError as error:
        raise InvalidConditionError(
            f"{part.strip()!r} mixes types: {_first_sentence(error)}",
            hint=f"{_types(names)}; compare real numbers with 1.0 and texts with 'text'",
        ) from error
    except (RuntimeError, ValueError, ZeroDivisionError) as error:
        raise InvalidConditionError(
            f"{part.strip()!r} cannot be evaluated: {_first_sentence(error)}",
            hint="docs/guardrails.md lists the names and functions that conditions know",
        ) from error


def _operands(expression: str) -> list[str]:
    """The parts that ``&&``, ``||``, ``?`` and ``:`` join, also within brackets, smallest first."""
    parts, start, depth, quote = [], 0, 0, ""
    at = 0
    while at < len(expression):
        character = expression[at]
        if quote:
            at += character == "\\"
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif depth == 0 and (expression.startswith(("&&", "||"), at) or character in "?:"):
            parts.append(expression[start:at])
            at += character in "&|"
            start = at + 1
        at += 1
    parts.append(expression[start:])
    found: list[str] = []
    for part in parts:
        inner = part.strip().lstrip("!").strip()
        if inner.startswith("(") and inner.endswith(")") and _is_one_bracket(inner):
            found += _operands(inner[1:-1]) or [inner[1:-1]]
        elif len(parts) > 1:
            found.append(part)
    return found


def _is_one_bracket(text: str) -> bool:
    """Whether the first bracket of a text closes with its last character."""
    depth = 0
    for at, character in enumerate(_QUOTED.sub(lambda found: "_" * len(found[0]), text)):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return at == len(text) - 1
    return False


def _parsed(expression: str) -> cel.Program:
    depth = deepest = 0
    for character in _QUOTED.sub("", expression):
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    unary = re.search(r"[!-]{20}", expression)
    if len(expression) > MOST_CHARACTERS or deepest > MOST_NESTING or unary:
        raise InvalidConditionError(
            f"the condition is too long or too deep ({len(expression)} characters, {deepest} brackets)",
            hint=f"at most {MOST_CHARACTERS} characters and {MOST_NESTING} brackets; split it into several guardrails",
        )
    if len(_MACRO.findall(expression)) > MOST_MACROS:
        raise InvalidConditionError(
            "the condition walks too many lists", hint=f"at most {MOST_MACROS} of all, exists, filter and map"
        )
    try:
        return cel.compile(expression)
    except ValueError as error:
        place = _PLACE.search(str(error))
        where = f"at character {int(place[2]) + 1}: {place[3].strip()}" if place else _first_sentence(error)
        raise InvalidConditionError(
            f"the condition {expression!r} cannot be parsed {where}",
            hint=f"{_marked(expression, int(place[2]) if place else 0)} (CEL; 'for 30s' may stand at its very end)",
        ) from None
    except BaseException as error:  # a panic in the parser must not end the monitor
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise InvalidConditionError(
            f"the condition {expression!r} cannot be parsed", hint="write it more simply"
        ) from None


def _check_names(expression: str, names: Iterable[str], functions: Iterable[str]) -> None:
    for name in sorted(names):
        if name not in VARIABLES:
            raise _unknown(expression, name, "name", VARIABLES)
    for name in sorted(functions):
        if name.isidentifier() and not name.startswith("_") and name not in FUNCTIONS:
            raise _unknown(expression, name, "function", FUNCTIONS)
        if name.startswith("__"):
            raise _unknown(expression, name, "function", FUNCTIONS)
    for found in _COMPARED.finditer(expression):
        variable, value = found[1] or found[6], found[3] if found[1] else found[5]
        known = VARIABLES[variable].values
        if value not in known:
            raise InvalidConditionError(
                f"{variable} is never {value!r} (character {found.start() + 1} of {expression!r})",
                hint=f"{_nearest(value, known)}it can be: {', '.join(known)}",
            )


def _unknown(expression: str, name: str, what: str, known: Iterable[str]) -> InvalidConditionError:
    found = re.search(rf"\b{re.escape(name)}\b", expression)
    at = f" (character {found.start() + 1} of {expression!r})" if found else ""
    return InvalidConditionError(
        f"the condition speaks of {name!r}{at}, and there is no such {what}",
        hint=f"{_nearest(name, known)}docs/guardrails.md lists them all",
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {nearest[0]}? " if nearest else ""


def _types(names: Iterable[str]) -> str:
    words: dict[type[Any], str] = {str: "a text", bool: "true or false", dict: "a map", int: "a whole number"}
    told = [
        f"{name} is {words.get(type(VARIABLES[name].example), 'a real number')}"
        for name in sorted(names)
        if name in VARIABLES
    ]
    return ", ".join(told) or "it has no names"


def _first_sentence(error: Exception) -> str:
    return str(error.args[0] if error.args else error).split(". ")[0].split("\n")[0].rstrip(".")


def _marked(expression: str, at: int) -> str:
    return f"the place is marked: {expression[:at]} <here> {expression[at:]}".rstrip()
