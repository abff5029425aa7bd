"""Lines, and the values in them, of the JSON backend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.persistence.codecs.value_codec import encode_value
from vllm_monitor.persistence.json_backend.json_lines import decode_line, encode_line, read_lines, replace_file
from vllm_monitor.persistence.json_backend.json_values import bits_from_json, bits_to_json, nested, text_of

json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_texts, min_size=1, max_size=4))
def test_lines_give_back_what_they_were_made_of(fields: dict[str, Any]) -> None:
    line = encode_line(fields)
    assert line.count(b"\n") == 1
    assert decode_line(line) == fields
    for at in range(0, len(line), 5):
        with pytest.raises(StoreDamagedError):
            decode_line(line[:at] + bytes([line[at] ^ 4]) + line[at + 1 :])


@given(st.text() | json_texts.map(encode_value) | st.sampled_from(['{"a":1,"a":2}', "[1e3]", "{", "[" * 5000, "[NaN]"]))
def test_texts_of_columns_survive(text: str) -> None:
    assert text_of(json.loads(json.dumps(nested(text)))) == text


@given(st.lists(st.integers(0, 2**64 - 1), max_size=8), st.booleans())
def test_values_survive_by_their_bits(numbers: list[int], with_gaps: bool) -> None:
    bits = np.array(numbers, dtype=np.uint64)
    present = np.arange(len(bits)) % 2 == 0 if with_gaps else None
    values = json.loads(json.dumps(bits_to_json(bits, present), allow_nan=False))
    found, found_present = bits_from_json(values)
    if present is None or present.all():
        assert found_present is None
        assert found.tolist() == numbers
    else:
        assert found_present is not None
        assert found_present.tolist() == present.tolist()
        assert found[present].tolist() == bits[present].tolist()


@pytest.mark.parametrize("values", ["x", [True], ["0x12"], [[]], {}, [10**400]])
def test_values_that_are_none_are_refused(values: Any) -> None:
    with pytest.raises(StoreDamagedError):
        bits_from_json(values)


def test_a_line_torn_at_any_byte_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    first, last = encode_line({"a": [1.5, "ü"]}), encode_line({"b": {"c": None}})
    for at in range(1, len(last)):
        path.write_bytes(first + last[:at])
        whole, torn = read_lines(path)
        assert (whole.fields, whole.torn) == ({"a": [1.5, "ü"]}, False)
        assert (torn.fields, torn.torn, torn.offset, torn.raw) == (None, True, len(first), last[:at])


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    replace_file(path, [encode_line({"a": 1})])

    def fails() -> Any:
        yield encode_line({"a": 2})
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        replace_file(path, fails())
    assert next(read_lines(path)).fields == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    assert path.stat().st_mode & 0o777 == 0o600
