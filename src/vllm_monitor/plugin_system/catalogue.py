"""Which of the stored and installed plugins may run now, in which order, and why the others may not. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from vllm_monitor.errors import ConfigurationError, PluginError
from vllm_monitor.plugin_system.configuration import plain_config
from vllm_monitor.plugin_system.declaration import Declaration, checked_kind, declaration_of
from vllm_monitor.plugin_system.dependencies import check_dependencies, load_order, parse_dependency
from vllm_monitor.plugin_system.installed import InstalledPlugin
from vllm_monitor.plugin_system.process import Program
from vllm_monitor.plugin_system.trust import sha256_of
from vllm_monitor.records import PLUGIN_VERBS, PluginKind, PluginRecord, PluginState

__all__ = ["SETTABLE", "Candidate", "Entry", "declared_record", "judge"]

SETTABLE = ("interval_seconds", "timeout_seconds", "memory_bytes")
"""What an operator may say instead of the plugin, in its ``metadata``. What trust must cover stands in the source."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plugin that is ready to be run.

    Args:
        name: Its name.
        kind: What it is for.
        sha256: What trust in it goes by.
        declaration: What it says of itself, with what its operator says instead.
        program: What runs.
        target: The only server it is for; empty for all.
        version: Its version.
        needs: Names of the plugins that it needs.
    """

    name: str
    kind: PluginKind
    sha256: str
    declaration: Declaration
    program: Program
    target: str
    version: str
    needs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A plugin that there is.

    Args:
        record: As stored.
        state: Whether it may run.
        reason: Why not, and what to do.
        sha256: What trust in it goes by.
        candidate: What would run; ``None`` when it may not.
    """

    record: PluginRecord
    state: PluginState
    reason: str = ""
    sha256: str = ""
    candidate: Candidate | None = field(default=None, compare=False)

    @property
    def is_switched_off(self) -> bool:
        """Whether a person did it; what failures have switched off keeps its guardrails."""
        return self.state is PluginState.DISABLED and "disabled_because" not in self.record.metadata


def _record_of_installed(plugin: InstalledPlugin) -> PluginRecord:
    """What would be stored of a plugin that another package brings."""
    return PluginRecord(
        plugin.name, "", metadata={"module": plugin.module, "distribution": plugin.distribution}, description=""
    )


def declared_record(record: PluginRecord, plugin: InstalledPlugin) -> PluginRecord:
    """The record of an installed plugin, with what its module says of itself."""
    declared = declaration_of(plugin.source, plugin.name)
    return replace(
        record,
        plugin_type=declared.kind.value if declared.kind is not None else "",
        version=declared.version,
        description=declared.description,
        dependencies=list(declared.dependencies),
        metadata={**record.metadata, **_record_of_installed(plugin).metadata},
    )


def _candidate_of(record: PluginRecord, plugin: InstalledPlugin | None, sha256: str) -> Candidate:
    """What would run of a record.

    Args:
        record: The plugin as stored.
        plugin: The installed one that it stands for; ``None`` for a stored source.
        sha256: What trust in it goes by.

    Raises:
        PluginError: When it cannot.
        ConfigurationError: When its kind is none.
    """
    source = record.source if plugin is None else plugin.source
    given = {key: record.metadata.get(key) for key in SETTABLE}
    kind = checked_kind(record.plugin_type) if record.plugin_type else None
    declaration = declaration_of(source, record.name, {**given, "kind": kind})
    if declaration.kind is None:
        raise PluginError(
            f"plugin {record.name} does not say what it is for",
            hint=f'write PLUGIN = {{"kind": ...}} into it, one of {", ".join(PluginKind)}',
        )
    return Candidate(
        record.name,
        declaration.kind,
        sha256,
        declaration,
        Program(
            name=record.name,
            source=record.source,
            module="" if plugin is None else plugin.module,  # not what the record says: trust covers the package
            package_sha256=sha256 if plugin is not None else "",
            verbs=PLUGIN_VERBS[declaration.kind],
            memory_bytes=declaration.memory_bytes,
            config=plain_config(record.name, record.config),
            config_schema=declaration.config_schema,
            environment=declaration.environment,
        ),
        record.target,
        record.version,
        tuple(parse_dependency(str(text), record.name).name for text in record.dependencies),
    )


def judge(
    records: Iterable[PluginRecord],
    installed: Mapping[str, InstalledPlugin],
    trusted: AbstractSet[str],
    trust_problem: str = "",
) -> dict[str, Entry]:
    """Every plugin that there is, in the order in which they are loaded.

    Nothing of a source that is not trusted is even parsed.

    Args:
        records: What is stored.
        installed: What other packages bring.
        trusted: Sums of the sources that the operator trusts.
        trust_problem: Why the list of these cannot be believed; empty when it can.
    """
    known = {record.name: record for record in records}
    for name, plugin in installed.items():
        known.setdefault(name, _record_of_installed(plugin))
    entries = {name: _alone(record, installed, trusted, trust_problem) for name, record in known.items()}
    versions = {name: record.version for name, record in known.items()}
    needs = {name: entry.candidate.needs if entry.candidate else () for name, entry in entries.items()}
    order, circles = load_order(needs)
    judged: dict[str, Entry] = {}
    for name in order:
        entry = entries[name]
        if entry.candidate is not None:
            entry = _among_others(entry, entry.candidate, versions, circles, {**entries, **judged})
        judged[name] = entry
    return judged


def _alone(
    record: PluginRecord, installed: Mapping[str, InstalledPlugin], trusted: AbstractSet[str], trust_problem: str
) -> Entry:
    """What can be said without the other plugins."""
    plugin = installed.get(record.name) if not record.source else None
    sha256 = plugin.sha256 if plugin else sha256_of(record.source)
    if not record.enabled:
        because = record.metadata.get("disabled_because")
        back = f"vllm-monitor plugins enable {record.name}"
        return Entry(
            record, PluginState.DISABLED, f"{because} ({back})" if because else f"switched off ({back})", sha256
        )
    if not record.source and plugin is None:
        module = record.metadata.get("module")
        why = f"no package that is installed here brings it (module {module})" if module else "it has no source"
        return Entry(record, PluginState.INVALID, why)
    if sha256 not in trusted:
        return Entry(record, PluginState.UNTRUSTED, _why_untrusted(record, plugin, sha256, trust_problem), sha256)
    try:
        return Entry(record, PluginState.READY, "", sha256, _candidate_of(record, plugin, sha256))
    except (PluginError, ConfigurationError) as error:
        return Entry(record, PluginState.INVALID, str(error), sha256)
    except Exception as error:  # a record may be edited to anything; it must not keep the others away
        return Entry(record, PluginState.INVALID, f"it cannot be looked at: {error!r}", sha256)


def _why_untrusted(record: PluginRecord, plugin: InstalledPlugin | None, sha256: str, trust_problem: str) -> str:
    do = f"read it (vllm-monitor plugins show {record.name}), then: vllm-monitor plugins trust {record.name}"
    if trust_problem:
        return trust_problem
    if plugin is not None:
        return f"the package {plugin.distribution or plugin.module} brings it, and it was never trusted; {do}"
    registered = record.metadata.get("registered_sha256")
    if registered and registered != sha256:
        return f"its source was changed since it was registered; {do}"
    return f"its source comes from elsewhere (an import, another machine or user); {do}"


def _among_others(
    entry: Entry,
    candidate: Candidate,
    versions: Mapping[str, str],
    circles: Mapping[str, str],
    others: Mapping[str, Entry],
) -> Entry:
    name = entry.record.name
    if name in circles:
        why = f"plugins need each other in a circle: {circles[name]}; change what one of them needs"
        return replace(entry, state=PluginState.INVALID, reason=why, candidate=None)
    try:
        check_dependencies(name, map(str, entry.record.dependencies), versions)
    except PluginError as error:
        return replace(entry, state=PluginState.WAITING, reason=str(error), candidate=None)
    for needed in candidate.needs:
        other = others[needed]
        if other.state is not PluginState.READY:
            why = f"it needs {needed}, which is {other.state}: {other.reason}"
            return replace(entry, state=PluginState.WAITING, reason=why, candidate=None)
    return entry
