"""The simulator as a process, and its command."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
import typer
from typer.testing import CliRunner

from vllm_monitor.cli.simulate import simulate
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.simulator import Fault, SimulatorProcess, parse_fault


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5.0) as answer:  # noqa: S310  # http URLs of our own
        body: bytes = answer.read()
    return body


def test_a_simulator_process_serves_and_ends_cleanly() -> None:
    with SimulatorProcess(seed=1, speed=5.0, model="tiny", track_load=True) as simulator:
        assert b"vllm:num_requests_running" in _get(f"{simulator.url}/metrics")
        assert json.loads(_get(f"{simulator.url}/v1/models"))["data"][0]["id"] == "tiny"
        codes = [simulator.exit_code]
    assert [*codes, simulator.exit_code] == [None, 0]
    with pytest.raises(urllib.error.URLError):
        _get(f"{simulator.url}/health")


def test_faults_and_a_slow_start_reach_the_process() -> None:
    faults: list[Fault | str] = [parse_fault("slow_start@0+600"), "leak@900+10"]
    with SimulatorProcess(faults=faults, wait_until_serving=False) as simulator:
        with pytest.raises(urllib.error.URLError, match="refused"):
            _get(f"{simulator.url}/health")
        assert simulator.exit_code is None


def test_options_that_make_no_sense_are_reported_by_the_parent() -> None:
    with pytest.raises(ConfigurationError, match="requests_per_second"), SimulatorProcess(rate=-1.0):
        pass


def test_the_process_ends_when_its_parent_dies() -> None:
    parent = (
        "import os, signal\n"
        "from vllm_monitor.simulator import SimulatorProcess\n"
        "simulator = SimulatorProcess().__enter__()\n"
        "print(simulator.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, check=False, timeout=20.0)
    assert done.returncode == -signal.SIGKILL
    _await_end(int(done.stdout))


def _await_end(pid: int) -> None:
    for _ in range(1000):
        try:
            os.kill(pid, 0)
            with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123  # procfs
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return
        except (ProcessLookupError, FileNotFoundError):
            return
        signal.sigtimedwait([], 0.01)
    pytest.fail("the simulator outlived its parent")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_command_with_exit_code_0(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "vllm_monitor.simulator", "--port=0", "--fault=freeze@20+15"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline().decode()
        assert "http://127.0.0.1:" in line
        assert "freeze@20+15" in line
        process.send_signal(number)
        assert process.wait(10.0) == 0
        assert process.stderr.read() == b""


def _application() -> typer.Typer:
    application = typer.Typer()
    application.command()(simulate)
    return application


def test_the_command_prints_one_line_and_stops_after_its_duration() -> None:
    result = CliRunner().invoke(
        _application(), ["--port", "0", "--duration", "0.1", "--fault", "crash@20", "--rate", "0.5"]
    )
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    assert "http://127.0.0.1:" in line
    assert "crash@20" in line
    assert "0.5 requests/s" in line


def test_the_command_says_when_the_port_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(_application(), ["--port", str(port)])
    assert isinstance(result.exception, ConfigurationError)
    assert f"port {port} on 127.0.0.1 is in use" in result.exception.message
    assert "--port" in result.exception.hint


def test_the_command_says_what_is_wrong_with_a_fault() -> None:
    result = CliRunner().invoke(_application(), ["--fault", "fire@1+2"])
    assert isinstance(result.exception, ConfigurationError)
    assert "freeze" in result.exception.hint
