"""Ports, with real sockets."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.doctor.subjects import levels, make_subject, run_check, the_only

from vllm_monitor.doctor import Level, parse_launch


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("host", ["x" * 70, ".", "ü..", "a b", "u:password", "a\0b"])
def test_a_host_that_is_none(host: str) -> None:
    subject = make_subject()
    launch = parse_launch(["vllm", "serve", "m", "--host", host, "--port", "8000"], {})
    found = the_only(run_check("port", replace(subject, launch=launch)), Level.PROBLEM)
    assert "no address" in found.message
    assert "u:password" not in repr(found)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_who_has_the_port_is_told(taken_port: int) -> None:
    found = the_only(run_check("port", make_subject(port=taken_port, pids=[os.getpid()])), Level.PROBLEM)
    assert found.data["pids"] == [os.getpid()]
    assert os.path.basename(sys.executable) in found.message  # noqa: PTH119


def test_a_holder_that_is_not_seen_is_said_to_be_one(taken_port: int) -> None:
    found = the_only(run_check("port", make_subject(port=taken_port)), Level.PROBLEM)
    assert "may not look at" in found.message
    assert "ss -ltnp" in found.advice


def test_a_free_port_stays_free() -> None:
    port = free_port()
    assert levels(run_check("port", make_subject(port=port))) == [Level.OK]
    with socket.create_server(("", port)):  # it was not kept
        assert levels(run_check("port", make_subject(port=port))) == [Level.PROBLEM]


def test_the_last_connections_of_a_server_that_has_ended_are_not_in_the_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = listener.accept()
            accepted.close()  # who closes first keeps the port for a minute
            assert client.recv(1) == b""
    assert levels(run_check("port", make_subject(port=port))) == [Level.OK]


def test_the_address_counts(taken_port: int) -> None:
    for host, level in (("127.0.0.1", Level.PROBLEM), ("127.0.0.2", Level.OK), ("203.0.113.7", Level.PROBLEM)):
        subject = make_subject(f"vllm serve m --host {host} --port {taken_port}")
        assert levels(run_check("port", subject)) == [level]
    assert "no address of this machine" in run_check("port", subject)[0].message


def test_ports_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels(run_check("port", make_subject(port=70_000))) == [Level.PROBLEM]
    assert levels(run_check("port", make_subject("vllm serve m --uds /run/s --port 70000"))) == [Level.OK]

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    assert "for root" in the_only(run_check("port", make_subject(port=80)), Level.PROBLEM).message
