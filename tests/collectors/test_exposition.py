from __future__ import annotations

import contextlib
import gc
import math
import random
import struct
import weakref
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from vllm_monitor.collectors import exposition
from vllm_monitor.collectors.exposition import MAX_LINES, PageParser, ParsedPage
from vllm_monitor.errors import NotAMetricsPageError, PageTooLargeError
from vllm_monitor.records import MetricKind, Series
from vllm_monitor.records.series import escape_label_value

PAGE = b"""# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{model_name="m",engine="0"} 1.234e+06
# TYPE vllm:generation_tokens_created gauge
vllm:generation_tokens_created{model_name="m",engine="0"} 1.7e+09
# TYPE h histogram
h_bucket{le="0.1"} 1
h_bucket{le="+Inf"} 2
h_sum 0.3
h_count 2
# TYPE h_created gauge
h_created 1.7e+09
# TYPE s summary
s{quantile="0.5"} NaN
s_sum 1
s_count 1
plain -Inf
"""


def parse(page: bytes) -> ParsedPage:
    return PageParser().parse(page)


def rows(page: ParsedPage) -> list[tuple[Series, MetricKind, bytes]]:
    """Comparable by bits, so that NaN equals NaN; and by kind, which Series leaves out of equality."""
    pairs = zip(page.layout.series, page.values, strict=True)
    return [(series, series.kind, struct.pack("d", value)) for series, value in pairs]


def one(line: bytes) -> tuple[Series, float]:
    page = parse(line + b"\n")
    assert page.malformed_lines == 0
    return page.layout.series[0], page.values[0]


def test_names_labels_values_and_kinds() -> None:
    page = parse(PAGE)
    found = {str(series): (series.kind, value) for series, value in zip(page.layout.series, page.values, strict=True)}
    assert found.pop('s{quantile="0.5"}')[0] is MetricKind.SUMMARY
    assert found == {
        'vllm:num_requests_running{engine="0",model_name="m"}': (MetricKind.GAUGE, 3.0),
        'vllm:generation_tokens_total{engine="0",model_name="m"}': (MetricKind.COUNTER, 1234000.0),
        'h_bucket{le="0.1"}': (MetricKind.HISTOGRAM, 1.0),
        'h_bucket{le="+Inf"}': (MetricKind.HISTOGRAM, 2.0),
        "h_sum": (MetricKind.HISTOGRAM, 0.3),
        "h_count": (MetricKind.HISTOGRAM, 2.0),
        "s_sum": (MetricKind.SUMMARY, 1.0),
        "s_count": (MetricKind.SUMMARY, 1.0),
        "plain": (MetricKind.UNKNOWN, -math.inf),
    }
    assert page.malformed_lines == 0
    assert not page.truncated


def test_created_is_kept_where_no_family_claims_it() -> None:
    page = parse(b"# TYPE jobs_created gauge\njobs_created 5\n# TYPE jobs gauge\njobs 1\n")
    assert [series.name for series in page.layout.series] == ["jobs_created", "jobs"]


@pytest.mark.parametrize(
    ("line", "labels", "value"),
    [
        (rb'a{x="back\\slash \"quoted\" line\nend"} 1', (("x", 'back\\slash "quoted" line\nend'),), 1.0),
        (rb'a{x="}{,= # {y=\"1\"} 2"} 3', (("x", '}{,= # {y="1"} 2'),), 3.0),
        (rb'a{b="2",a="1",} 4', (("a", "1"), ("b", "2")), 4.0),
        (b'a { x = "1" , y = "2" }\t5\t1700000000000', (("x", "1"), ("y", "2")), 5.0),
        (b"a 6 1700000000000", (), 6.0),
        (b"a 7\r", (), 7.0),
        (b"  a{} 8e-3  ", (), 0.008),
        (b'a{x="1"}9', (("x", "1"),), 9.0),
        (b'a{x="\xff\xfe"} 10', (("x", "\ufffd\ufffd"),), 10.0),
        ('a{x="é\u2028"} 11'.encode(), (("x", "é\u2028"),), 11.0),
        (b'a_bucket{le="1"} 12 # {trace_id="a b"} 0.5 1.7e9', (("le", "1"),), 12.0),
        (b"a 13 # {} 1", (), 13.0),
        (b"a +Inf", (), math.inf),
    ],
)
def test_lines_of_every_flavour(line: bytes, labels: tuple[tuple[str, str], ...], value: float) -> None:
    series, found = one(line)
    assert (series.labels, found) == (labels, value)


@pytest.mark.parametrize(
    "line",
    [
        b"a",
        b"a one",
        b"a 1_000",
        b"a 0x10",
        b"a 1 2 3",
        b"a 1 later",
        b'a{x="1} 1',
        b'a{x="1",x="2"} 1',
        b"a{x=1} 1",
        b'a{x="1"',
        b'a{x="1"}',
        b"9a 1",
        b"a-b 1",
        b"\xff\xfe 1",
        b"a" * 70_000 + b" 1",
        b'a{x="' + b"\\\\" * 40_000 + b'"} 1',
        b"{} 1",
    ],
)
def test_malformed_lines_are_skipped_and_counted(line: bytes) -> None:
    page = parse(b"good 1\n" + line + b"\nalso 2\n")
    assert [series.name for series in page.layout.series] == ["good", "also"]
    assert page.malformed_lines == 1


def test_the_last_line_without_its_end_is_not_believed() -> None:
    parser = PageParser()
    assert list(parser.parse(b"a 1\nb 123\n").values) == [1.0, 123.0]
    cut = parser.parse(b"a 1\nb 12")
    assert cut.truncated
    assert [series.name for series in cut.layout.series] == ["a"]
    whole = parser.parse(b"a 1\nb 124\n")
    assert not whole.truncated
    assert list(whole.values) == [1.0, 124.0]


@pytest.mark.parametrize(
    ("page", "word"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (b"  <!DOCTYPE html>\n<html>\nup 1\n</html>\n", "HTML"),
        (b'{"detail":"Not Found"}\n', "JSON"),
        (b"# HELP a A.\n# TYPE a gauge\n", "comments"),
        (b"hello world\n", "without a single sample"),
        (b"\x1f\x8b\x08\x00garbage\n\x00", "without a single sample"),
    ],
)
def test_pages_of_something_else_say_what_they_are(page: bytes, word: str) -> None:
    with pytest.raises(NotAMetricsPageError, match=word) as caught:
        parse(page)
    assert caught.value.hint


def test_a_page_of_endless_lines_is_refused() -> None:
    with pytest.raises(PageTooLargeError):
        parse(b"\n" * (MAX_LINES + 1))


def test_the_layout_stays_the_same_object_while_the_series_stay() -> None:
    parser, other = PageParser(), PageParser()
    first = parser.parse(PAGE)
    second = parser.parse(PAGE.replace(b" 3.0", b" 4.0"))
    assert second.layout is first.layout
    assert second.values[0] == 4.0
    assert first.values[0] == 3.0
    assert other.parse(PAGE).layout is first.layout
    more = parser.parse(PAGE + b"new 1\n")
    assert more.layout is not first.layout
    assert parser.parse(PAGE).layout is first.layout


def test_a_failed_page_leaves_the_parser_usable() -> None:
    parser = PageParser()
    layout = parser.parse(PAGE).layout
    with pytest.raises(NotAMetricsPageError):
        parser.parse(b"<html>")
    assert parser.parse(PAGE).layout is layout


def test_layouts_are_forgotten_with_their_last_holder() -> None:
    gone = weakref.ref(parse(b"only_here_for_this_test 1\n").layout)
    gc.collect()
    assert gone() is None


def test_a_type_that_appears_later_changes_the_kind() -> None:
    parser = PageParser()
    assert parser.parse(b"a 1\n").layout.series[0].kind is MetricKind.UNKNOWN
    assert parser.parse(b"# TYPE a counter\na 2\n").layout.series[0].kind is MetricKind.COUNTER
    assert parser.parse(b"# TYPE a gauge\na 2\n").layout.series[0].kind is MetricKind.GAUGE


def test_real_pages_read_as_the_general_parser_reads_them(shared_recordings: Path) -> None:
    paths = sorted(shared_recordings.glob("metrics_vllm_*.txt"))
    assert paths
    for path in paths:
        text = path.read_text()
        page = parse(path.read_bytes())
        expected = {
            Series(sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in parse_text(text)
            for sample in family.samples
            if not sample.name.endswith("_created")
        }
        assert dict(zip(page.layout.series, page.values, strict=True)) == expected
        assert page.malformed_lines == 0
        assert MetricKind.UNKNOWN not in {series.kind for series in page.layout.series}


names = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,12}", fullmatch=True)
# The general parser refuses names that begin with two underscores; those are Prometheus's own.
label_names = st.from_regex(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]{0,6}", fullmatch=True)
label_values = st.text(
    st.one_of(st.sampled_from("\\\"\n{},=# \t'n"), st.characters(exclude_categories=["Cs"], exclude_characters="\r")),
    max_size=12,
)
numbers = st.floats()


@st.composite
def sample_lines(draw: st.DrawFn) -> str:
    labels = draw(st.dictionaries(label_names, label_values, max_size=3))
    inner = ",".join(f'{name}="{escape_label_value(value)}"' for name, value in labels.items())
    value = draw(numbers)
    text = {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, repr(value).replace("nan", "NaN"))
    return f"{draw(names)}{{{inner}}} {text}" if labels else f"{draw(names)} {text}"


@st.composite
def text_pages(draw: st.DrawFn) -> str:
    lines = draw(st.lists(sample_lines(), min_size=1, max_size=8))
    # A control character other than a line feed ends no line of the format, whatever str.splitlines() thinks.
    return "\n".join(lines) + "\n"


@given(text_pages())
def test_it_reads_what_the_general_parser_reads(text: str) -> None:
    page = parse(text.encode())
    expected = [
        (Series(sample.name, tuple(sorted(sample.labels.items()))), struct.pack("d", sample.value))
        for family in parse_text(text)
        for sample in family.samples
    ]
    assert page.malformed_lines == 0
    assert sorted((str(series), bits) for series, _, bits in rows(page)) == sorted(
        (str(series), bits) for series, bits in expected
    )


def test_openmetrics_reads_as_the_general_parser_reads_it() -> None:
    text = """# HELP tokens Tokens.
# TYPE tokens counter
tokens_total{m="a"} 5.0 1.5
tokens_created{m="a"} 1.7e9 1.5
# TYPE lat_seconds histogram
# UNIT lat_seconds seconds
lat_seconds_bucket{le="1.0"} 1.0 # {trace="x} y"} 0.5 1.6e9
lat_seconds_bucket{le="+Inf"} 2.0
lat_seconds_count 2.0
lat_seconds_sum 1.5
# TYPE build info
build_info{v="1"} 1.0
# EOF
"""
    page = parse(text.encode())
    expected = {
        Series(sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_openmetrics(text)  # type: ignore[no-untyped-call]  # the peer has no types
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert dict(zip(page.layout.series, page.values, strict=True)) == expected
    assert [series.kind for series in page.layout.series] == [
        MetricKind.COUNTER,
        *[MetricKind.HISTOGRAM] * 4,
        MetricKind.GAUGE,
    ]


odd_lines = st.sampled_from(
    [
        "",
        "# TYPE a counter",
        "# TYPE a gauge",
        "# TYPE a_total counter",
        "# HELP a Something.",
        "# EOF",
        "a 1",
        "a  1",
        "a 1 1700",
        "a 2 1800",
        "a\t2",
        "a 1\t1700",
        "a 2\r",
        "a_created 3",
        'a_created{x="1"} 4',
        'a_total{x="1"} 4',
        'a_total{x="1"} 5 # {t="1"} 1',
        'a_total{x="1"} 6',
        'a_total{x="1 6',
        "a 1_0",
        "a broken",
        "a -0",
        "a NaN",
        "b 1",
        "b{} 1",
        "\x0b",
    ]
)
pages = st.builds(
    lambda lines, end: ("\n".join(lines) + end).encode(),
    st.lists(st.one_of(odd_lines, sample_lines()), max_size=7),
    st.sampled_from(["\n", "", "\r\n"]),
)


@settings(max_examples=150)
@given(st.lists(pages, min_size=2, max_size=5))
def test_reading_after_other_pages_equals_reading_afresh(sequence: list[bytes]) -> None:
    parser = PageParser()
    for page in sequence:
        outcomes = []
        for candidate in (parser, PageParser()):
            try:
                parsed = candidate.parse(page)
                outcomes.append((rows(parsed), parsed.malformed_lines, parsed.truncated))
            except NotAMetricsPageError as error:
                outcomes.append(([], len(str(error)), False))
        assert outcomes[0] == outcomes[1]


@settings(max_examples=200)
@given(st.lists(odd_lines, min_size=1, max_size=6), st.data())
def test_changing_single_lines_equals_reading_afresh(lines: list[str], data: st.DataObject) -> None:
    lines = ["anchor 1", *lines]
    parser = PageParser()
    parser.parse(("\n".join(lines) + "\n").encode())
    for _ in range(3):
        lines[data.draw(st.integers(1, len(lines) - 1))] = data.draw(odd_lines)
        page = ("\n".join(lines) + "\n").encode()
        again, fresh = parser.parse(page), parse(page)
        assert rows(again) == rows(fresh)
        assert again.malformed_lines == fresh.malformed_lines


number_texts = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.sampled_from(
        ["NaN", "-0", "1e400", "-inf", " 7 ", "0x1p3", "1_0", "1_0 1700", "1 1700", '2\t# {t="1"} 1', "", "b"]
    ),
)
rests = st.one_of(number_texts, st.binary(max_size=6).map(lambda raw: raw.replace(b"\n", b"").decode("latin-1")))
changes = st.lists(st.tuples(st.sampled_from(["a ", 'a{x="1_0"} ', "nan ", "b_total ", "a", "nan", ""]), rests))


@settings(max_examples=200)
@given(st.lists(changes, min_size=1, max_size=4))
def test_reading_lines_together_equals_reading_them_one_by_one(sequence: list[list[tuple[str, str]]]) -> None:
    first = ["a 1", 'a{x="1_0"} 2', "nan 3", "b_total 4", "# EOF"]

    def read_all() -> list[tuple[object, int, bool]]:
        parser, lines = PageParser(), list(first)
        found: list[tuple[object, int, bool]] = []
        for page in [[], *sequence]:
            for place, (prefix, rest) in enumerate(page[: len(lines)]):
                lines[place] = prefix + rest
            with contextlib.suppress(NotAMetricsPageError):
                parsed = parser.parse(("\n".join(lines) + "\n").encode("latin-1"))
                found.append((rows(parsed), parsed.malformed_lines, parsed.truncated))
        return found

    together = read_all()
    with mock.patch.object(exposition, "_read_together", return_value=None):
        assert read_all() == together


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(page: bytes) -> None:
    with contextlib.suppress(NotAMetricsPageError):
        assert len(parse(page).layout) > 0


def test_damaged_real_pages_are_read_or_refused(shared_recordings: Path) -> None:
    page = bytearray((shared_recordings / "metrics_vllm_0.32.0.txt").read_bytes())
    generator = random.Random(7)
    parser = PageParser()
    for _ in range(60):
        for _ in range(20):
            page[generator.randrange(len(page))] = generator.randrange(256)
        assert rows(parser.parse(bytes(page))) == rows(parse(bytes(page)))
