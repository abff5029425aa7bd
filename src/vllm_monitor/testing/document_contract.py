"""What a store promises of documents and models."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np

from vllm_monitor.errors import RecordNotFoundError, StaleRevisionError
from vllm_monitor.testing.contract_base import StoreContract
from vllm_monitor.testing.example_records import GUARDRAIL, HOSTILE, PLUGIN, STRATEGY
from vllm_monitor.testing.expectations import expect, expect_equal, expect_error

__all__ = ["DocumentContract"]

_MODEL = {
    "weights": np.array([[1.5, math.nan], [-0.0, math.inf]]),
    "counts": np.arange(5, dtype=np.int32),
    "flags": np.array([], dtype=bool),
    "table": {("state", 1): [0.5, None], 7: {"nested": (np.float32(0.1).item(), b"\x00")}},
}


class DocumentContract(StoreContract):
    """Guardrails, plugins, strategies and models."""

    def test_documents_come_back_as_they_were(self, tmp_path: Path) -> None:
        """At once and after reopening."""
        with self.open(tmp_path) as store:
            store.save_guardrails([GUARDRAIL])
            store.save_plugins({PLUGIN.name: PLUGIN})
            store.save_strategies([STRATEGY])
            expect_equal(store.load_guardrails(), [GUARDRAIL], "guardrails at once")
        with self.open(tmp_path) as store:
            expect_equal(store.load_guardrails(), [GUARDRAIL], "guardrails")
            expect_equal(store.load_plugins(), {PLUGIN.name: PLUGIN}, "plugins")
            expect_equal(store.load_strategies(), {STRATEGY.name: STRATEGY}, "strategies")

    def test_documents_are_merged_by_entry(self, tmp_path: Path) -> None:
        """What a call does not name stays; a stale revision is refused; a deletion is remembered."""
        second = dataclasses.replace(GUARDRAIL, name="second")
        with self.open(tmp_path) as store:
            store.save_guardrails([GUARDRAIL])
            store.save_guardrails([second])
            expect_equal(store.load_guardrails(), [GUARDRAIL, second], "merged guardrails")
            store.save_guardrails([dataclasses.replace(second, enabled=True)], expected_revisions={"second": 1})
            with expect_error(StaleRevisionError, "a change that is based on an older revision"):
                store.save_guardrails([second], expected_revisions={"second": 1})
            store.delete_guardrail("second")
            expect_equal(store.load_guardrails(), [GUARDRAIL], "after deleting one")
        with self.open(tmp_path) as store:
            expect_equal(store.load_guardrails(), [GUARDRAIL], "after reopening")
            expect_equal(store.document_revisions("guardrails")["second"], 3, "the revision of a deletion")

    def test_models_come_back_as_they_were(self, tmp_path: Path) -> None:
        """Arrays by type, shape and bits; tables and values; the newest version first."""
        with self.open(tmp_path) as store:
            store.save_model("../odd name", {"first": 1})
            store.save_model("../odd name", _MODEL, HOSTILE)
            expect_equal(store.load_model("../odd name"), (_MODEL, HOSTILE), "a model at once")
        with self.open(tmp_path) as store:
            expect_equal(store.load_model("../odd name"), (_MODEL, HOSTILE), "a model after reopening")
            expect_equal(store.load_model("../odd name", 1), ({"first": 1}, {}), "its first version")
            expect_equal(sorted(model.version for model in store.list_models()), [1, 2], "versions")
            with expect_error(RecordNotFoundError, "a model that is not there"):
                store.load_model("other")
        outside = [path for path in tmp_path.parent.iterdir() if path.name.endswith("odd name")]
        expect(not outside, f"a model left the folder: {outside}")
