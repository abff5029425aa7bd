"""Saving guardrails, plugins and strategies and loading them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from vllm_monitor.errors import ConfigurationError
from vllm_monitor.persistence.codecs.arguments import checked_text
from vllm_monitor.persistence.documents.document_access import DocumentAccess
from vllm_monitor.persistence.documents.documents import DOCUMENT_KINDS, GUARDRAILS, PLUGINS, STRATEGIES
from vllm_monitor.records import GuardrailPolicy, PluginRecord, StrategyRecord

__all__ = ["DocumentVerbs"]

Record = TypeVar("Record", GuardrailPolicy, PluginRecord, StrategyRecord)
Given = Iterable[Record] | Mapping[str, Record | Mapping[str, Any]]
Revisions = Mapping[str, int] | None


class DocumentVerbs(DocumentAccess):
    """Guardrails, plugins and strategies; part of ``PersistenceManager``.

    They are merged entry by entry: what a call does not name stays, and so do the fields that somebody else
    changed meanwhile and this manager's caller did not. An entry that somebody else deleted since this manager
    saw it is not brought back by saving it again; ``expected_revisions`` with its present revision does that.
    """

    def save_guardrails(
        self, guardrails: Given[GuardrailPolicy], *, expected_revisions: Revisions = None
    ) -> dict[str, int]:
        """Save guardrails; durable when the call returns, as :meth:`save_checkpoint`.

        Args:
            guardrails: Records, or a mapping of names to records or to fields; fields that are left out of an
                entry that exists stay as they are.
            expected_revisions: Name to the revision on which the change is based (0: there is none yet), see
                :meth:`document_revisions`. When one differs, nothing is saved. Without it a change is made on
                the newest revision.

        Returns:
            Name to revision of what was saved; without the entries that somebody else deleted meanwhile.

        Raises:
            StaleRevisionError: When an entry is not at the expected revision.
            ValueNotStorableError: When something in it could not be given back unchanged.
            ConfigurationError: When a field does not exist, or one that is needed is missing.
            StoreTooNewError: When a newer version wrote the file.
            StoreUnavailableError: When it is not durable and ``config.required`` is set.
        """
        return self._save_documents(GUARDRAILS, guardrails, expected_revisions)

    def save_plugins(self, plugins: Given[PluginRecord], *, expected_revisions: Revisions = None) -> dict[str, int]:
        """Save plugins; otherwise as :meth:`save_guardrails`. ``sha256`` is always that of the source."""
        return self._save_documents(PLUGINS, plugins, expected_revisions)

    def save_strategies(
        self, strategies: Given[StrategyRecord], *, expected_revisions: Revisions = None
    ) -> dict[str, int]:
        """Save strategies; otherwise as :meth:`save_guardrails`."""
        return self._save_documents(STRATEGIES, strategies, expected_revisions)

    def load_guardrails(self, *, target: str | None = None) -> list[GuardrailPolicy]:
        """All guardrails, in the order in which they were first saved.

        An entry that cannot be read is skipped, logged and counted in :meth:`health`. While the file as a whole
        cannot be read, its last good version is what loads, and :meth:`health` says at which line and column.

        Args:
            target: Only those for this server (not those for all); ``None`` is no restriction.

        Raises:
            StoreTooNewError: When a newer version wrote the file.
            StoreUnavailableError: When they cannot be read and ``config.required`` is set.
        """
        return list(self._load_documents(GUARDRAILS, target).values())

    def load_plugins(self, *, target: str | None = None) -> dict[str, PluginRecord]:
        """All plugins by name; otherwise as :meth:`load_guardrails`. Data only: nothing runs."""
        return self._load_documents(PLUGINS, target)

    def load_strategies(self, *, target: str | None = None) -> dict[str, StrategyRecord]:
        """All strategies by name; otherwise as :meth:`load_guardrails`."""
        return self._load_documents(STRATEGIES, target)

    def delete_guardrail(self, name: str, *, expected_revision: int | None = None) -> None:
        """Delete a guardrail; durable when the call returns.

        Raises:
            RecordNotFoundError: When there is none of that name.
            StaleRevisionError: When it is not at the expected revision.
            StoreUnavailableError: When it is not durable and ``config.required`` is set.
        """
        self._delete_document(GUARDRAILS, name, expected_revision)

    def delete_plugin(self, name: str, *, expected_revision: int | None = None) -> None:
        """Delete a plugin; otherwise as :meth:`delete_guardrail`."""
        self._delete_document(PLUGINS, name, expected_revision)

    def delete_strategy(self, name: str, *, expected_revision: int | None = None) -> None:
        """Delete a strategy; otherwise as :meth:`delete_guardrail`."""
        self._delete_document(STRATEGIES, name, expected_revision)

    def document_revisions(self, kind: str) -> dict[str, int]:
        """The revision of every entry, those of deleted ones included.

        Args:
            kind: ``guardrails``, ``plugins`` or ``strategies``.

        Raises:
            ConfigurationError: When there is no such kind.
        """
        kind = checked_text(kind, "kind")
        if kind not in DOCUMENT_KINDS:
            raise ConfigurationError(f"there are no {kind!r}", hint=f"Pass one of {', '.join(DOCUMENT_KINDS)}.")
        return {name: entry.revision for name, entry in self._look_at(DOCUMENT_KINDS[kind]).entries.items()}

    async def save_guardrails_async(
        self, guardrails: Given[GuardrailPolicy], *, expected_revisions: Revisions = None
    ) -> dict[str, int]:
        """As :meth:`save_guardrails`, without blocking the loop."""
        return await asyncio.to_thread(self.save_guardrails, guardrails, expected_revisions=expected_revisions)

    async def save_plugins_async(
        self, plugins: Given[PluginRecord], *, expected_revisions: Revisions = None
    ) -> dict[str, int]:
        """As :meth:`save_plugins`, without blocking the loop."""
        return await asyncio.to_thread(self.save_plugins, plugins, expected_revisions=expected_revisions)

    async def save_strategies_async(
        self, strategies: Given[StrategyRecord], *, expected_revisions: Revisions = None
    ) -> dict[str, int]:
        """As :meth:`save_strategies`, without blocking the loop."""
        return await asyncio.to_thread(self.save_strategies, strategies, expected_revisions=expected_revisions)

    async def load_guardrails_async(self, *, target: str | None = None) -> list[GuardrailPolicy]:
        """As :meth:`load_guardrails`, without blocking the loop."""
        return await asyncio.to_thread(self.load_guardrails, target=target)

    async def load_plugins_async(self, *, target: str | None = None) -> dict[str, PluginRecord]:
        """As :meth:`load_plugins`, without blocking the loop."""
        return await asyncio.to_thread(self.load_plugins, target=target)

    async def load_strategies_async(self, *, target: str | None = None) -> dict[str, StrategyRecord]:
        """As :meth:`load_strategies`, without blocking the loop."""
        return await asyncio.to_thread(self.load_strategies, target=target)

    async def delete_guardrail_async(self, name: str, *, expected_revision: int | None = None) -> None:
        """As :meth:`delete_guardrail`, without blocking the loop."""
        await asyncio.to_thread(self.delete_guardrail, name, expected_revision=expected_revision)

    async def delete_plugin_async(self, name: str, *, expected_revision: int | None = None) -> None:
        """As :meth:`delete_plugin`, without blocking the loop."""
        await asyncio.to_thread(self.delete_plugin, name, expected_revision=expected_revision)

    async def delete_strategy_async(self, name: str, *, expected_revision: int | None = None) -> None:
        """As :meth:`delete_strategy`, without blocking the loop."""
        await asyncio.to_thread(self.delete_strategy, name, expected_revision=expected_revision)
