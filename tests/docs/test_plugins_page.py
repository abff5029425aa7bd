"""docs/plugins.md names kinds, functions, keys, limits and classes as they are; its examples keep their contracts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_type_hints

import pytest
from tests.docs.pages import DOCS, REPOSITORY, code_spans, section, table_rows

from vllm_monitor.plugin_system.declaration import Declaration
from vllm_monitor.plugin_system.delivery import OWN_METRICS
from vllm_monitor.plugin_system.running import MOST_FAILURES
from vllm_monitor.records import PLUGIN_VERBS, PluginContext, PluginGuardrail, PluginKind, PluginPanel, PluginSample
from vllm_monitor.records.plugin import PluginStrategy, PluginWarning, TargetView
from vllm_monitor.testing import plugin_contract
from vllm_monitor.testing.plugin_contract import PluginContract

PAGE = DOCS / "plugins.md"
EXAMPLES = REPOSITORY / "examples" / "plugins"
ANSWERS: dict[PluginKind, Any] = {
    PluginKind.COLLECTOR: PluginSample,
    PluginKind.DETECTOR: PluginWarning,
    PluginKind.GUARDRAIL: PluginGuardrail,
    PluginKind.STRATEGY: PluginStrategy,
    PluginKind.PANEL: PluginPanel,
}
CONTRACTS: dict[PluginKind, type[PluginContract]] = {
    contract.kind: contract
    for contract in vars(plugin_contract).values()
    if isinstance(contract, type) and issubclass(contract, PluginContract) and contract is not PluginContract
}
CONFIGS = {"json_lines": {"path": "/dev/null"}, "less_traffic": {"weight_file": "/dev/null"}}


def rows(heading: str) -> list[list[str]]:
    return table_rows(section(PAGE, heading))[1:]


def test_kinds() -> None:
    found = {PluginKind(code_spans(row[0])[0]): row[1:] for row in rows("Kinds")}
    assert set(found) == set(PluginKind)
    for kind, (functions, answer, _, example) in found.items():
        assert tuple(code_spans(functions)) == PLUGIN_VERBS[kind]
        assert set(code_spans(answer)) - set(PLUGIN_VERBS[kind]) == set(get_type_hints(ANSWERS.get(kind, int)))
        (path,) = code_spans(example)
        assert (REPOSITORY / path).is_file()


def test_context() -> None:
    found = {code_spans(row[0])[0]: row[1] for row in rows("The context")}
    assert list(found) == list(get_type_hints(PluginContext))
    assert set(get_type_hints(TargetView)) <= set(code_spans(found["targets"]))


def test_declaration() -> None:
    found = {code_spans(row[0])[0]: row[1] for row in rows("What it says of itself")}
    assert list(found) == list(Declaration.model_fields)
    defaults = Declaration()
    assert float(found["timeout_seconds"]) == defaults.timeout_seconds
    assert int(found["memory_bytes"]) == defaults.memory_bytes


def test_limits_and_figures() -> None:
    part = section(PAGE, "What a plugin cannot do")
    words = {3: "three"}[MOST_FAILURES]
    assert f"fails {words} times in a row, or loses its process {words} times a day" in part
    assert set(OWN_METRICS) <= set(code_spans(part))


def test_contracts() -> None:
    assert {code_spans(row[0])[0] for row in rows("Contract suites")} == {one.__name__ for one in CONTRACTS.values()}


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_examples_keep_their_contracts(example: Path) -> None:
    source = example.read_text(encoding="utf-8")
    kind = next(kind for kind in PluginKind if f'"kind": "{kind}"' in source)
    config = CONFIGS.get(example.stem, {})
    contract = type("Example", (CONTRACTS[kind],), {"source": source, "config": config})()
    for name in dir(contract):
        if name.startswith("test_"):
            getattr(contract, name)()
