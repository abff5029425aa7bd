from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_monitor.errors import ConfigurationError
from vllm_monitor.simulator import EngineSettings, Fault, FaultKind, LoadSettings, ServerSettings, parse_fault

_NUMBERS = st.floats(min_value=0.0, max_value=1e9, allow_nan=False)


@given(
    kind=st.sampled_from(FaultKind),
    start=_NUMBERS,
    duration=_NUMBERS,
    rate=st.none() | _NUMBERS,
    withheld=st.none() | st.floats(min_value=0.0, max_value=1.0),
    restart=st.booleans(),
)
def test_a_fault_reads_back_from_its_text(
    kind: FaultKind, start: float, duration: float, rate: float | None, withheld: float | None, restart: bool
) -> None:
    fault = Fault(kind, start, duration, rate_multiplier=rate, withheld_ratio=withheld, restart=restart)
    assert parse_fault(str(fault)) == fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("freeze@20+15", Fault(FaultKind.FREEZE, 20, 15)),
        ("freeze@20s+15s", Fault(FaultKind.FREEZE, 20, 15)),
        ("KV-pressure@1.5+2", Fault(FaultKind.KV_PRESSURE, 1.5, 2)),
        ("crash@40", Fault(FaultKind.CRASH, 40)),
        ("leak@1+2,bytes_per_second=5e6", Fault(FaultKind.LEAK, 1, 2, bytes_per_second=5e6)),
        ("crash@1,restart=0", Fault(FaultKind.CRASH, 1, restart=False)),
    ],
)
def test_faults_are_written_shortly(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault


def test_a_fault_without_duration_lasts_until_cleared() -> None:
    assert parse_fault("freeze@5").end_seconds == math.inf
    assert parse_fault("freeze@5+2").end_seconds == 7.0


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("freeze", "kind@start+duration"),
        ("fire@1+2", "freeze, crash"),
        ("freeze@-1+2", "kind@start+duration"),
        ("freeze@1+2,colour=3", "rate_multiplier"),
        ("freeze@1+2,restart=perhaps", "number"),
        ("kv_pressure@1,withheld_ratio=2", "between 0 and 1"),
    ],
)
def test_a_wrong_fault_says_what_to_write_instead(text: str, hint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_fault(text)
    assert hint in caught.value.hint


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="does not fit"):
        EngineSettings(num_blocks=10)
    with pytest.raises(ConfigurationError, match="requests_per_second"):
        LoadSettings(requests_per_second=-1.0)
    with pytest.raises(ConfigurationError, match="max_num_seqs"):
        EngineSettings(max_num_seqs=0)
    with pytest.raises(ConfigurationError, match="failing_seconds"):
        ServerSettings(failing_seconds=3.0)
