from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_monitor.collectors.targets import host_and_port, normalise_target
from vllm_monitor.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("gpu7:8000", "http://gpu7:8000"),
        ("localhost", "http://localhost"),
        (" http://gpu7:8000/ ", "http://gpu7:8000"),
        ("http://gpu7:8000/metrics", "http://gpu7:8000"),
        ("http://gpu7:8000/metrics/", "http://gpu7:8000"),
        ("https://GPU7.Example.com:443/vllm/a/metrics", "https://gpu7.example.com/vllm/a"),
        ("HTTP://gpu7:80", "http://gpu7"),
        ("http://gpu7:443", "http://gpu7:443"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("http://[0:0:0:0:0:0:0:1]:8000", "http://[::1]:8000"),
        ("my_host.internal:9", "http://my_host.internal:9"),
        ("http://bücher.example:8000", "http://xn--bcher-kva.example:8000"),
    ],
)
def test_every_way_to_write_a_server(text: str, url: str) -> None:
    assert normalise_target(text) == url
    assert normalise_target(url) == url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "http://",
        "http://:8000",
        "ftp://gpu7",
        "file:///etc/passwd",
        "http://gpu7:99999",
        "http://gpu7:0",
        "gpu7:",
        "gpu7:port",
        "http://gpu7:8000/?x=1",
        "http://gpu7:8000/#metrics",
        "http://gp u7",
        "gpu7\r\nHost: x",
        "http://1.2.3",
        "999.1.1.1:80",
        "http://[::1",
        "http://[::zz]:1",
        "-gpu7:80",
        "http://a..b",
        "a" * 300,
    ],
)
def test_what_is_no_server_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        normalise_target(text)
    assert caught.value.hint


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        normalise_target("http://admin:hunter2@gpu7:8000")
    assert "hunter2" not in str(caught.value)
    assert "--api-key" in caught.value.hint


@pytest.mark.parametrize(
    ("url", "pair"),
    [
        ("http://gpu7:8000", ("gpu7", 8000)),
        ("http://gpu7", ("gpu7", 80)),
        ("https://gpu7/x", ("gpu7", 443)),
        ("http://[::1]:8000", ("::1", 8000)),
    ],
)
def test_host_and_port(url: str, pair: tuple[str, int]) -> None:
    assert host_and_port(url) == pair


@given(st.one_of(st.text(max_size=40), st.text("ht:/[]@.1a-#?%", max_size=20)))
def test_any_text_is_normalised_for_good_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigurationError):
        url = normalise_target(text)
        assert normalise_target(url) == url
        assert host_and_port(url)[0]
