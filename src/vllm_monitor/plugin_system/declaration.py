"""What a plugin says of itself: the literal ``PLUGIN = {...}`` in its source, read without running any of it."""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vllm_monitor.errors import ConfigurationError, PluginError
from vllm_monitor.records import PLUGIN_VERBS, PluginKind

__all__ = ["MOST_SOURCE_BYTES", "Declaration", "checked_kind", "checked_name", "declaration_of"]

MOST_SOURCE_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

Text = Annotated[str, Field(max_length=10_000)]


class Declaration(BaseModel):
    """The settings that a plugin gives itself; each can be left out.

    Args:
        kind: What it is for; needed when the caller does not say it.
        name: Its name, where the caller does not give one.
        version: Its version, such as ``1.2.0``.
        description: For a person.
        interval_seconds: Time between two calls, 0.1 to 86,400; ``None`` is that of the watch.
        timeout_seconds: Longest that a call may take, 0.01 to 300.
        memory_bytes: Most memory for its data, 32 MiB to 64 GiB.
        environment: Names of environment variables that it may see, for tokens that must not stand in its settings.
        dependencies: Plugins that must run before it, each ``name`` or ``name>=1.2``.
        config_schema: JSON Schema of its settings; ``default`` of a property is filled in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: PluginKind | None = None
    name: str = ""
    version: Text = ""
    description: Text = ""
    interval_seconds: float | None = Field(default=None, ge=0.1, le=86_400.0)
    timeout_seconds: float = Field(default=5.0, ge=0.01, le=300.0)
    memory_bytes: int = Field(default=512 << 20, ge=32 << 20, le=64 << 30)
    environment: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()
    config_schema: dict[str, Any] | None = None

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return checked_name(name) if name else name


def checked_name(name: Any) -> str:
    """A name for a plugin.

    Raises:
        ConfigurationError: When it is none.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no name for a plugin", hint="use letters, digits, '_', '-' and '.', at most 100 of them"
        )
    return name


def checked_kind(kind: Any) -> PluginKind:
    """A kind of plugin.

    Raises:
        ConfigurationError: When there is no such kind.
    """
    try:
        return PluginKind(kind)
    except ValueError:
        near = difflib.get_close_matches(str(kind).lower(), PluginKind, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigurationError(
            f"there is no kind of plugin {kind!r}", hint=f"{hint}there are {', '.join(PluginKind)}"
        ) from None


def declaration_of(source: str, name: str, changes: Mapping[str, Any] | None = None) -> Declaration:
    """What a source says of itself.

    Args:
        source: The text of a Python module.
        name: For messages.
        changes: What its operator says instead.

    Raises:
        PluginError: When it is no Python, has no such functions as its kind needs, or declares what makes no sense.
    """
    if len(source) > MOST_SOURCE_BYTES:
        raise PluginError(f"plugin {name}: its source is too long", hint=f"the most is {MOST_SOURCE_BYTES} characters")
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        place = f"line {error.lineno}" if error.lineno else "somewhere"
        raise PluginError(f"plugin {name}: {place}: {error.msg}", hint="mend that line of its source") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise PluginError(f"plugin {name} is no Python: {error}", hint="give the text of a Python module") from None
    declared = _literal(tree, name)
    wanted = {key: value for key, value in (changes or {}).items() if value is not None}
    try:
        declaration = Declaration(**{**declared, **wanted})
    except ValidationError as error:
        raise PluginError(f"plugin {name}: {_problems(error)}", hint="correct its PLUGIN = {...}") from None
    if declaration.kind is not None:
        _check_functions(tree, name, declaration.kind)
    return declaration


def _literal(tree: ast.Module, name: str) -> dict[str, Any]:
    for statement in tree.body:
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            continue
        places = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if not any(isinstance(place, ast.Name) and place.id == "PLUGIN" for place in places):
            continue
        try:
            declared = ast.literal_eval(statement.value)
        except (ValueError, TypeError, RecursionError, MemoryError):
            declared = None
        if not isinstance(declared, dict) or not all(isinstance(key, str) for key in declared):
            raise PluginError(
                f"plugin {name}: line {statement.lineno}: PLUGIN is no dict of plain values",
                hint="write only text, numbers, lists and dicts there; it is read without running the plugin",
            )
        return declared
    return {}


def _check_functions(tree: ast.Module, name: str, kind: PluginKind) -> None:
    """The functions of the kind, as far as they can be seen; what a star import brings shows when it is loaded."""
    bound: set[str] = set()
    for statement in tree.body:
        if isinstance(statement, ast.AsyncFunctionDef) and statement.name in PLUGIN_VERBS[kind]:
            raise PluginError(
                f"plugin {name}: line {statement.lineno}: {statement.name} is an async function",
                hint="write a plain one: it has a process of its own, and may block there",
            )
        if isinstance(statement, ast.FunctionDef):
            bound.add(statement.name)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            places = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            bound.update(place.id for place in places if isinstance(place, ast.Name))
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            bound.update(alias.asname or alias.name for alias in statement.names)
    missing = [verb for verb in PLUGIN_VERBS[kind] if verb not in bound]
    if missing and "*" not in bound and not _binds_in_blocks(tree):
        near = difflib.get_close_matches(missing[0], bound, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        verbs = ", ".join(f"def {verb}(context)" for verb in PLUGIN_VERBS[kind])
        raise PluginError(
            f"plugin {name}: a {kind} needs a function {' and '.join(missing)}", hint=f"{hint}it must have {verbs}"
        )


def _binds_in_blocks(tree: ast.Module) -> bool:
    return any(isinstance(statement, ast.If | ast.Try | ast.With) for statement in tree.body)


def _problems(error: ValidationError) -> str:
    words = []
    for problem in error.errors(include_url=False, include_context=False):
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, Declaration.model_fields, n=1)
            words.append(f"PLUGIN has no key {key!r}{f', did you mean {near[0]}?' if near else ''}")
        else:
            words.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}, got {problem['input']!r}")
    return "; ".join(words)
