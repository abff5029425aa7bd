"""What a store promises of samples."""

from __future__ import annotations

import math
import struct
from array import array
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from vllm_monitor.errors import ValueNotStorableError
from vllm_monitor.persistence import PersistenceManager
from vllm_monitor.records import Layout, MetricKind, Series
from vllm_monitor.testing.contract_base import HOST, StoreContract
from vllm_monitor.testing.example_records import HOSTILE
from vllm_monitor.testing.expectations import expect_equal, expect_error

__all__ = ["PAGE", "SampleContract"]

PAGE = Layout(
    [
        Series("vllm:prompt_tokens_total", (("engine", "0"),), MetricKind.COUNTER),
        Series("vllm:num_requests_running", (("engine", "0"),), MetricKind.GAUGE),
        Series("vllm:num_requests_running", (("engine", "1"),), MetricKind.GAUGE),
        Series("odd", (("text", 'ü"\n\\'), ("z", "")), MetricKind.UNKNOWN),
    ]
)
_QUIET_NAN, _ODD_NAN = struct.pack("<Q", 0x7FF8_0000_0000_0000), struct.pack("<Q", 0xFFF8_0000_0000_BEEF)
_BITS = [_QUIET_NAN, _ODD_NAN, *(struct.pack("<d", number) for number in (math.inf, -math.inf, -0.0, 0.1, 5e-324))]
_NUMBERS: list[Any] = [1, -(2**60), True, 0.1, -0.0, math.inf, math.nan, 5e-324, Decimal("0.5"), Fraction(1, 4)]


class SampleContract(StoreContract):
    """Samples: by type and bits, in order, filtered."""

    def test_single_samples_keep_type_and_bits(self, tmp_path: Path) -> None:
        """Every kind of number comes back as it was: at once, after a flush, after reopening."""
        wanted: list[dict[str, Any]] = []
        with self.open(tmp_path) as store:
            for second, value in enumerate(_NUMBERS):
                sample = {
                    "timestamp": float(second),
                    "metric_type": "custom",
                    "metric_name": "odd name ü",
                    "value": value,
                    "tags": {"a": "1", "b": second},
                    "metadata": HOSTILE,
                    "target": HOST,
                }
                store.save_metric(**{**sample, "timestamp": second + 0.0004})
                wanted.insert(0, sample)
            expect_equal(store.get_metrics(), wanted, "samples that are not committed")
            store.flush_all()
            expect_equal(store.get_metrics(), wanted, "samples that are committed")
        with self.open(tmp_path) as store:
            expect_equal(store.get_metrics(), wanted, "samples after reopening")

    def test_scrapes_keep_their_bits(self, tmp_path: Path) -> None:
        """Infinities, minus zero and the payloads of NaN survive a scrape."""
        with self.open(tmp_path) as store:
            for second, bits in enumerate(_BITS):
                values = array("d", [second, 0, 0, 0])
                values[1] = struct.unpack("<d", bits)[0]
                store.save_scrape(PAGE, values, timestamp=second, target=HOST)
            self._expect_bits(store, "before")
        with self.open(tmp_path) as store:
            self._expect_bits(store, "after reopening")

    def test_samples_of_equal_time_are_all_kept_in_order(self, tmp_path: Path) -> None:
        """Neither equal nor earlier times lose a sample."""
        times = [5.0, 5.0, 3.0, 5.0, 3.0]
        for round_number in range(2):
            with self.open(tmp_path) as store:
                if round_number == 0:
                    for number, time in enumerate(times):
                        store.save_metric("custom", "x", number, timestamp=time)
                        store.save_scrape(PAGE, array("d", [number] * 4), timestamp=time, target=HOST)
                for name, kind in (("x", "single samples"), ("odd", "scrapes")):
                    (found,) = store.query_range(name)
                    expect_equal(found.values.tolist(), [2.0, 4.0, 0.0, 1.0, 3.0], f"{kind} of equal time")
                newest = [sample["value"] for sample in store.get_metrics(metric_name="x")]
                expect_equal(newest, [3, 1, 0, 4, 2], "the newest first")

    def test_samples_are_found_by_their_filters(self, tmp_path: Path) -> None:
        """Name, type, tags, target and time; the newest first; no more than the limit."""
        for round_number in range(2):
            with self.open(tmp_path) as store:
                if round_number == 0:
                    for second in range(6):
                        store.save_scrape(PAGE, array("d", [second] * 4), timestamp=100 + second, target=HOST)
                        store.save_metric("custom", "mine", second, {"n": second % 2}, timestamp=100 + second)
                        if second == 2:
                            store.flush_all()
                expect_equal(len(store.get_metrics(limit=None)), 30, "all samples")
                expect_equal(len(store.get_metrics(limit=7)), 7, "a limit")
                expect_equal(len(store.get_metrics("custom")), 6, "samples of a type")
                expect_equal(len(store.get_metrics(target=HOST, metric_name="odd")), 6, "of a target and a name")
                found = store.get_metrics(metric_name="mine", start_time=101, end_time=103)
                expect_equal([sample["value"] for sample in found], [3, 2, 1], "a range of time")
                (series,) = store.query_range("vllm:num_requests_running", tags={"engine": "1"}, start_time=102)
                expect_equal(series.timestamps_ms.tolist(), [102_000, 103_000, 104_000, 105_000], "a series")
                expect_equal(store.list_targets(), ["", HOST], "targets")
                latest = {sample["metric_name"]: sample["value"] for sample in store.latest(target=HOST)}
                expect_equal(latest["vllm:prompt_tokens_total"], 5.0, "the latest value")

    def test_numbers_that_would_change_are_refused(self, tmp_path: Path) -> None:
        """An int that float64 cannot hold is an error, and nothing is stored."""
        with self.open(tmp_path) as store:
            for value in (2**53 + 1, "1", None, 1j):
                with expect_error(ValueNotStorableError, f"{value!r} as a sample"):
                    store.save_metric("custom", "x", value)
            expect_equal(store.get_metrics(), [], "refused samples")

    def _expect_bits(self, store: PersistenceManager, when: str) -> None:
        (found,) = store.query_range("vllm:num_requests_running", tags={"engine": "0"})
        expect_equal(found.values.tobytes(), b"".join(_BITS), f"the bits of a scraped series {when}")
