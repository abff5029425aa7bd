"""Process trees that look like vLLM's, made of real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from vllm_monitor.clock import ManualClock
from vllm_monitor.collectors import process_search, processes
from vllm_monitor.collectors.local_machine import LocalMachine, local_addresses_of
from vllm_monitor.collectors.proc_files import ProcessStat, read_stat
from vllm_monitor.collectors.processes import ProcessCollector
from vllm_monitor.collectors.socket_listing import list_sockets_from_files, list_sockets_from_netlink
from vllm_monitor.records import ProcessObservation

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux")

# A server: one process that listens, an engine below it, workers below the engine, a helper without a title.
WORKER = """
import time
time.sleep(120)
"""
# A process started under another name does not know its own interpreter, so that is written out.
ENGINE = f"""
import subprocess, time
for rank in range(2):
    title = f"VLLM::Worker_TP{{rank}}"
    subprocess.Popen(["bash", "-c", 'exec -a "$0" "$1" -c "$2"', title, {sys.executable!r}, {WORKER!r}])
time.sleep(120)
"""
SERVER = f"""
import os, socket, subprocess, sys, time
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
title = "VLLM::EngineCore_DP0"
subprocess.Popen(["bash", "-c", 'exec -a "$0" "$1" -c "$2"', title, {sys.executable!r}, {ENGINE!r}])
subprocess.Popen([sys.executable, "-c", {WORKER!r}])
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
listener.listen(8)
time.sleep(120)
"""

# A launcher that holds the socket and hands it to two API servers, and starts the engine itself.
SEVERAL = f"""
import socket, subprocess, time
listener = socket.create_server(("127.0.0.1", 0))
for title, sockets in (("VLLM::APIServer_0", [listener]), ("VLLM::APIServer_1", [listener]), ("VLLM::EngineCore", [])):
    subprocess.Popen(
        ["bash", "-c", 'exec -a "$0" "$1" -c "$2"', title, {sys.executable!r}, {WORKER!r}],
        pass_fds=[one.fileno() for one in sockets],
    )
print(listener.getsockname()[1], flush=True)
time.sleep(120)
"""

CLIENT = """
import socket, sys, time
held = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(3)]
time.sleep(60)
"""


class FakeServer:
    """The tree above, with a handle on its parts."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = port or probe.getsockname()[1]
        self._ready = folder / "ready"
        script = folder / "api_server.py"
        script.write_text(SERVER)
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(self._ready), "--port", str(self.port)], start_new_session=True
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def listen(self) -> None:
        self._ready.touch()

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def running(folder: Path, port: int | None = None) -> Iterator[FakeServer]:
    server = FakeServer(folder, port)
    try:
        yield server
    finally:
        server.stop()


class Watch:
    """A collector whose clock moves a second per look."""

    def __init__(self, url: str) -> None:
        self.clock = ManualClock()
        self.collector = ProcessCollector(url, self.clock)

    def look(self) -> ProcessObservation | None:
        self.clock.advance(1.0)
        return self.collector.collect()

    def until(self, condition: Callable[[ProcessObservation], bool]) -> ProcessObservation:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            seen = self.look()
            if seen is not None and condition(seen):
                return seen
            time.sleep(0.02)
        pytest.fail(f"never seen; last: {seen}")


def roles(seen: ProcessObservation) -> list[str]:
    return sorted(info.role for info in seen.processes)


def living(seen: ProcessObservation) -> list[str]:
    return sorted(info.role for info in seen.processes if info.state != "zombie")


WHOLE = ["api", "engine", "worker", "worker"]


def is_whole(seen: ProcessObservation) -> bool:
    named = [role for role in roles(seen) if not role.startswith("other:")]
    return named == WHOLE and len(seen.processes) == 5


def pid_of(seen: ProcessObservation, role: str) -> int:
    return next(info.pid for info in seen.processes if info.role == role)


def test_a_server_is_seen_from_its_start_to_its_last_orphan(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        watch = Watch(server.url)
        starting = watch.until(is_whole)
        assert starting.listen_queue is None
        assert pid_of(starting, "api") == server.process.pid

        server.listen()
        serving = watch.until(lambda seen: seen.listen_queue is not None)
        assert is_whole(serving)
        assert serving.listen_queue == 0
        api = next(info for info in serving.processes if info.role == "api")
        assert api.rss_bytes > 2**20
        assert api.vms_bytes >= api.rss_bytes
        assert api.threads == 1
        assert api.fds is not None
        assert api.fds >= 4
        assert api.voluntary_switches is not None

        engine = pid_of(serving, "engine")
        os.kill(engine, signal.SIGSTOP)
        stopped = watch.until(lambda seen: any(info.state == "stopped" for info in seen.processes))
        assert [info.role for info in stopped.processes if info.state == "stopped"] == ["engine"]
        os.kill(engine, signal.SIGCONT)
        watch.until(lambda seen: all(info.state != "stopped" for info in seen.processes))

        os.kill(engine, signal.SIGKILL)
        without = watch.until(lambda seen: "engine" not in living(seen))
        assert living(without).count("worker") == 2

        server.process.send_signal(signal.SIGKILL)
        orphans = watch.until(lambda seen: "api" not in living(seen))
        assert living(orphans).count("worker") == 2
        assert orphans.exit_code in {-9, None}
        server.process.wait()
        orphans = watch.until(lambda seen: "api" not in roles(seen) and seen.listen_queue is None)
        assert living(orphans).count("worker") == 2

        server.stop()
        # Where nobody reaps orphans they stay zombies, which are shown for ten seconds.
        gone = watch.until(lambda seen: not seen.processes)
        assert gone.listen_queue is None


def test_a_restarted_server_is_found_on_the_same_port(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    with running(first) as server:
        server.listen()
        watch = Watch(server.url)
        old = watch.until(is_whole)
    with running(second, port=server.port) as again:
        new = watch.until(
            lambda seen: again.process.pid in {info.pid for info in seen.processes} and is_whole_living(seen)
        )
        assert new.exit_code is None
        assert pid_of(old, "api") != again.process.pid


def test_a_new_start_is_seen_while_the_old_server_lingers(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    with running(first) as old:
        watch = Watch(old.url)
        watch.until(is_whole)
        with running(second, port=old.port) as new:
            both = watch.until(lambda seen: roles(seen).count("worker") == 4)
            assert {old.process.pid, new.process.pid} <= {info.pid for info in both.processes}


def is_whole_living(seen: ProcessObservation) -> bool:
    return [role for role in living(seen) if not role.startswith("other:")] == WHOLE


def test_several_api_servers_share_a_port(tmp_path: Path) -> None:
    script = tmp_path / "api_server.py"
    script.write_text(SEVERAL)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, start_new_session=True) as launcher:
        assert launcher.stdout is not None
        port = int(launcher.stdout.readline())
        try:
            watch = Watch(f"http://127.0.0.1:{port}")
            seen = watch.until(lambda seen: roles(seen) == ["api", "api", "api", "engine"])
            assert seen.listen_queue == 0
        finally:
            os.killpg(launcher.pid, signal.SIGKILL)


def test_queue_and_connections_leave_out_our_own(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        server.listen()
        watch = Watch(server.url)
        watch.until(lambda seen: seen.listen_queue is not None)
        client = subprocess.Popen(
            [
                sys.executable,
                "-c",
                CLIENT,
                str(server.port),
            ]
        )
        try:
            with socket.create_connection(("127.0.0.1", server.port)):
                seen = watch.until(lambda seen: seen.listen_queue == 4)
                assert seen.established == 3
        finally:
            client.kill()
            client.wait()
        watch.until(lambda seen: seen.established == 0)


def test_our_own_process_may_be_the_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watch = Watch(f"http://127.0.0.1:{listener.getsockname()[1]}")
        seen = watch.look()
        assert seen is not None
        assert (os.getpid(), "api") in {(info.pid, info.role) for info in seen.processes}
        assert seen.host.memory_available_bytes


def test_a_reused_pid_is_not_taken_for_the_old_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watch = Watch(f"http://127.0.0.1:{listener.getsockname()[1]}")
        seen = watch.look()
        assert seen is not None
        assert seen.processes
    still_there = watch.look()
    assert still_there is not None
    assert still_there.processes

    def started_later(pid: int) -> ProcessStat | None:
        stat = read_stat(pid)
        return None if stat is None else replace(stat, start_ticks=stat.start_ticks + 1)

    monkeypatch.setattr(processes, "read_stat", started_later)
    gone = watch.look()
    assert gone is not None
    assert gone.processes == ()


def test_a_listener_that_cannot_be_identified_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        watch = Watch(f"http://127.0.0.1:{listener.getsockname()[1]}")
        # As if the listener were another user's: its file descriptors are not shown to us.
        monkeypatch.setattr(process_search, "socket_inodes", lambda pid: iter(()))
        assert watch.look() is None
        assert "cannot be seen" in watch.collector.note


def test_another_address_is_another_server() -> None:
    with socket.create_server(("127.0.0.2", 0)) as listener:
        port = listener.getsockname()[1]
        there, here = Watch(f"http://127.0.0.2:{port}").look(), Watch(f"http://127.0.0.1:{port}").look()
    assert there is not None
    assert there.processes
    assert here is not None
    assert (here.processes, here.listen_queue) == ((), None)


def test_a_wildcard_listener_serves_every_address() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        for host in ("127.0.0.1", "[::1]", "localhost"):
            seen = Watch(f"http://{host}:{port}").look()
            assert seen is not None
            assert seen.listen_queue == 0


def test_several_targets_share_a_reading() -> None:
    clock = ManualClock()
    machine = LocalMachine(clock)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        urls = [f"http://127.0.0.1:{listener.getsockname()[1]}" for listener in (one, two)]
        collectors = [ProcessCollector(url, clock, machine) for url in urls]
        for collector in collectors:
            collector.collect()
        reading = machine.sockets()
        for collector in collectors:
            seen = collector.collect()
            assert seen is not None
            assert seen.listen_queue == 0
        assert machine.sockets() is reading
        clock.advance(1.0)
        assert machine.sockets() is not reading


def test_another_machine_has_no_processes_here() -> None:
    assert Watch("http://192.0.2.1:8000").look() is None


def test_a_name_that_cannot_be_resolved_is_noted() -> None:
    watch = Watch("http://no-such-host.invalid:8000")
    assert watch.look() is None
    assert "no-such-host.invalid" in watch.collector.note


def test_nobody_listens_and_nothing_starts() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        seen = Watch(f"http://127.0.0.1:{probe.getsockname()[1]}").look()
    assert seen is not None
    assert (seen.processes, seen.listen_queue, seen.established) == ((), None, 0)


def test_local_addresses() -> None:
    everywhere = "0.0.0.0"  # noqa: S104  # asked for, not bound
    assert local_addresses_of("127.0.0.1") == frozenset({"127.0.0.1"})
    assert local_addresses_of(everywhere) == frozenset({everywhere, "127.0.0.1"})
    assert local_addresses_of("192.0.2.1") is None


def test_both_ways_to_list_sockets_agree() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), socket.create_connection(("::1", port)):
            by_netlink = set(list_sockets_from_netlink([port]))
            by_files = set(list_sockets_from_files([port]) or [])
    assert by_netlink == by_files
    assert len(by_netlink) == 5
    assert {found.queue for found in by_netlink if found.listening} == {2}


def test_a_system_without_tables_is_noted(tmp_path: Path) -> None:
    assert list_sockets_from_files([1], tmp_path) is None
