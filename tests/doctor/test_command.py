"""What is said of the command itself: its model, its flags, and what is stored of earlier runs."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.doctor.subjects import CPU_BUILD, GPU_BUILD, levels, make_subject, run_check, the_only

from vllm_monitor.doctor import RULES, Installation, Level, examine, parse_launch
from vllm_monitor.errors import StoreDamagedError
from vllm_monitor.records import HappyPath

QUIET = (
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS=60 vllm serve m --host 127.0.0.1 --shutdown-timeout 30 --max-num-seqs 64 "
    "--max-num-queued-reqs 128"
)
MODULE = "python -m vllm.entrypoints.openai.api_server --model m --host 127.0.0.1"


def rules_of(command: str, installation: Installation = GPU_BUILD) -> set[str]:
    found = run_check("flags", make_subject(command, installation=installation))
    return {one.data["rule"] for one in found if "rule" in one.data}


def test_a_careful_command_is_told_one_thing() -> None:
    assert rules_of(QUIET) == {"exit code 0"}
    assert levels(run_check("flags", make_subject(QUIET))) == [Level.NOTE, Level.OK]
    assert run_check("flags", make_subject()) == []


CASES: list[tuple[str, str, Installation]] = [
    ("sleep mode on a CPU", f"{MODULE} --enable-sleep-mode", CPU_BUILD),
    ("vllm command of the CPU build", QUIET, CPU_BUILD),
    ("no share of memory", f"{QUIET} --gpu-memory-utilization 1.2", GPU_BUILD),
    ("no share of memory", f"{QUIET} --gpu-memory-utilization nan", GPU_BUILD),
    ("no share of memory", f"{QUIET} --gpu_memory_utilization=0", GPU_BUILD),
    ("development routes for everybody", "VLLM_SERVER_DEV_MODE=1 vllm serve m --host 0.0.0.0", GPU_BUILD),
    ("development routes for everybody", "VLLM_SERVER_DEV_MODE=1 vllm serve m", GPU_BUILD),
    ("nearly all memory", f"{QUIET} --gpu-memory-utilization 0.97", GPU_BUILD),
    ("open without a key", "vllm serve m", GPU_BUILD),
    ("key on the command line", f"{QUIET} --api-key abc", GPU_BUILD),
    ("adapters from anywhere", "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve m", GPU_BUILD),
    ("no statistics", f"{MODULE} --disable-log-stats", CPU_BUILD),
    ("queue below batch", "vllm serve m --max-num-seqs 256 --max-num-queued-reqs 100", GPU_BUILD),
    ("several API servers of the module", f"{MODULE} --api-server-count 2", GPU_BUILD),
    ("fault tolerance without its balancer", f"{QUIET} --enable-fault-tolerance", GPU_BUILD),
    ("scheduler of one's own", f"{QUIET} --scheduler-cls a.B", GPU_BUILD),
    ("fixed number of blocks", f"{QUIET} --num-gpu-blocks-override 96", GPU_BUILD),
    ("several API servers", f"{QUIET} -asc 2", GPU_BUILD),
    ("no drain", f"{QUIET} --shutdown-timeout 0", GPU_BUILD),
    ("no limit of the queue", "vllm serve m", GPU_BUILD),
    ("hang of five minutes", "vllm serve m", GPU_BUILD),
    ("exit code 0", QUIET, GPU_BUILD),
]


@pytest.mark.parametrize(("rule", "command", "installation"), CASES)
def test_each_rule_applies(rule: str, command: str, installation: Installation) -> None:
    assert rule in rules_of(command, installation)


def test_every_rule_has_a_case() -> None:
    assert {rule for rule, *_ in CASES} == {one.name for one in RULES}


@pytest.mark.parametrize(
    ("rule", "command", "installation"),
    [
        ("sleep mode on a CPU", f"{QUIET} --enable-sleep-mode", GPU_BUILD),
        ("vllm command of the CPU build", MODULE, CPU_BUILD),
        ("development routes for everybody", f"VLLM_SERVER_DEV_MODE=1 {QUIET}", GPU_BUILD),
        ("development routes for everybody", "VLLM_SERVER_DEV_MODE=0 vllm serve m", GPU_BUILD),
        ("nearly all memory", f"{QUIET} --gpu-memory-utilization 0.95", GPU_BUILD),
        ("open without a key", "VLLM_API_KEY=k vllm serve m", GPU_BUILD),
        ("open without a key", "vllm serve m --uds /run/s", GPU_BUILD),
        ("no statistics", f"{MODULE} --disable-log-stats", GPU_BUILD),  # our stat logger turns them on
        (
            "fault tolerance without its balancer",
            f"{QUIET} --enable-fault-tolerance --data-parallel-rank 0 --api-server-count 1",
            GPU_BUILD,
        ),
    ],
)
def test_what_a_rule_does_not_mean(rule: str, command: str, installation: Installation) -> None:
    assert rule not in rules_of(command, installation)


def test_options_in_a_file_are_not_claimed_to_be_fine() -> None:
    assert levels(run_check("flags", make_subject(f"{QUIET} --config c.yaml")))[0] is Level.UNKNOWN


def make_model(folder: Path, config: Any = None, weights: int = 10) -> Path:
    folder.mkdir()
    if config is not None:
        (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    if weights:
        (folder / "model-1.safetensors").write_bytes(b"x" * weights)
        (folder / "consolidated.safetensors").write_bytes(b"x" * weights)  # the same weights once more
        (folder / "pytorch_model.bin").write_bytes(b"x" * weights)
    return folder


def test_a_model_that_is_whole(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", {"max_position_embeddings": 2048})
    found = the_only(run_check("model", make_subject(f"vllm serve {model} --max-model-len 2k")), Level.OK)
    assert found.data["weights_bytes"] == 10


@pytest.mark.parametrize(
    ("config", "weights", "said"),
    [(None, 10, "no config.json"), ("{broken", 10, "cannot be read"), ({}, 0, "no weights")],
)
def test_a_model_that_is_not_whole(tmp_path: Path, config: Any, weights: int, said: str) -> None:
    model = make_model(tmp_path / "m", config, weights)
    assert said in the_only(run_check("model", make_subject(f"vllm serve {model}")), Level.PROBLEM).message


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    assert levels(run_check("model", make_subject(f"vllm serve {tmp_path}/absent"))) == [Level.PROBLEM]
    assert levels(run_check("model", make_subject(f"HF_HOME={tmp_path} vllm serve org/m"))) == [Level.NOTE]
    offline = make_subject(f"HF_HUB_OFFLINE=1 HF_HOME={tmp_path} vllm serve org/m")
    assert levels(run_check("model", offline)) == [Level.PROBLEM]
    assert "names no model" in the_only(run_check("model", make_subject("vllm serve")), Level.NOTE).message
    assert run_check("model", make_subject()) == []


@pytest.mark.parametrize(
    ("model", "level", "said"),
    [
        ("~nosuchuser/x", Level.PROBLEM, "there is no model at ~nosuchuser/x"),
        ("x" * 5000, Level.PROBLEM, "nor a name that a hub can have"),
        ("/" + "x" * 5000, Level.PROBLEM, "File name too long"),
        ("a b", Level.PROBLEM, "nor a name that a hub can have"),
        ("s3://bucket/m", Level.UNKNOWN, "is an address"),
        ("/a\0b", Level.PROBLEM, "there is no model at"),
    ],
)
def test_a_model_with_an_odd_name(model: str, level: Level, said: str) -> None:
    subject = make_subject()
    findings = examine(replace(subject, launch=parse_launch(["vllm", "serve", model, "-tp", "inf"], {})))
    found = the_only([one for one in findings if one.check == "model"], level)
    assert said in found.message
    assert len(found.message) < 400
    assert not any("this could not be looked at" in one.message for one in findings)


def test_pipes_in_the_place_of_files_are_not_waited_for(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m")
    os.mkfifo(model / "config.json")
    assert "cannot be read" in the_only(run_check("model", make_subject(f"vllm serve {model}")), Level.PROBLEM).message
    os.mkfifo(tmp_path / "pipe")
    found = the_only(run_check("model", make_subject(f"vllm serve {tmp_path}/pipe")), Level.PROBLEM)
    assert "neither a folder nor a file" in found.message
    refs = tmp_path / "hub" / "models--org--m" / "refs"
    refs.mkdir(parents=True)
    os.mkfifo(refs / "main")
    assert levels(run_check("model", make_subject(f"HF_HOME={tmp_path} vllm serve org/m"))) == [Level.NOTE]


def test_a_configuration_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", {})
    os.truncate(model / "config.json", 1 << 40)
    assert "cannot be read" in the_only(run_check("model", make_subject(f"vllm serve {model}")), Level.PROBLEM).message


def test_positions_that_are_nested_deeply(tmp_path: Path) -> None:
    rope = '{"a":' * 400 + "1" + "}" * 400
    model = make_model(tmp_path / "m", f'{{"max_position_embeddings": 4, "rope_scaling": {rope}}}')
    found = run_check("model", make_subject(f"vllm serve {model} --max-model-len 9"))
    assert Level.UNKNOWN not in levels(found)


def test_a_model_that_was_downloaded(tmp_path: Path) -> None:
    cached = tmp_path / "hub" / "models--org--m"
    (cached / "snapshots").mkdir(parents=True)
    make_model(cached / "snapshots" / "abc", {"max_position_embeddings": 10})
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc", encoding="utf-8")
    assert levels(run_check("model", make_subject(f"HF_HOME={tmp_path} vllm serve org/m"))) == [Level.OK]
    command = f"vllm serve org/m --download-dir {tmp_path / 'hub'}"
    assert levels(run_check("model", make_subject(command))) == [Level.OK]


@pytest.mark.parametrize(
    ("config", "before", "level"),
    [
        ({"max_position_embeddings": 2048}, "", Level.PROBLEM),
        ({"text_config": {"max_position_embeddings": 2048}}, "", Level.PROBLEM),
        ({"max_position_embeddings": 2048}, "VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 ", Level.WARNING),
        ({"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "yarn", "factor": 4}}, "", Level.WARNING),
        ({"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "default"}}, "", Level.PROBLEM),
        ({"max_position_embeddings": 8192}, "", None),
        ({}, "", None),
    ],
)
def test_a_length_that_the_model_does_not_have(tmp_path: Path, config: Any, before: str, level: Level | None) -> None:
    model = make_model(tmp_path / "m", config)
    found = run_check("model", make_subject(f"{before}vllm serve {model} --max-model-len 4096"))
    assert [one.level for one in found if "positions" in one.message] == ([] if level is None else [level])


HERE = {
    "cpus": os.cpu_count(),
    "machine": platform.machine(),
    "memory_total_bytes": psutil.virtual_memory().total,
    "kernel": "another",
}


def path_of(name: str, arguments: dict[str, Any], *, well: int = 3, badly: int = 0, **fingerprint: Any) -> HappyPath:
    known = {"arguments": arguments, "hardware": HERE, "version": "0.32.0", "models": ["m"], **fingerprint}
    return HappyPath(name, name, [], {}, [], well, badly, metadata={"fingerprint": known})


def test_a_model_that_was_never_seen_is_a_note() -> None:
    for paths in ([], [path_of("other", {"model": "x"}, models=["x"])], [HappyPath("1", "n", [], {}, [])]):
        found = the_only(run_check("history", make_subject("vllm serve m", happy_paths=paths)), Level.NOTE)
        assert "never seen here" in found.message
    assert run_check("history", make_subject(happy_paths=[])) == []


def test_the_same_model_flags_and_hardware() -> None:
    paths = [
        path_of("slower", {"model": "m", "max-num-seqs": "8"}, well=9),
        path_of("same", {"model": "m", "max_num_seqs": "64", "api-key": "[redacted]"}),
    ]
    subject = make_subject("vllm serve m --max-num-seqs 64 --port 9000 --api-key abc", happy_paths=paths)
    found = the_only(run_check("history", subject), Level.OK)
    assert found.data["nearest"] == "same"
    assert "with these flags and this hardware; 3 later runs went well, 0 did not" in found.message


def test_what_is_otherwise_is_named() -> None:
    hardware = {**HERE, "cpus": 999, "memory_total_bytes": 2**30}
    path = path_of("before", {"model": "m", "dtype": "float16"}, version="0.31.0", hardware=hardware)
    found = the_only(run_check("history", make_subject("vllm serve m --enforce-eager", happy_paths=[path])), Level.NOTE)
    assert found.data["different_flags"] == [
        "--dtype absent instead of float16",
        "--enforce-eager given instead of absent",
    ]
    (cpus, memory, version) = found.data["different_surroundings"]
    assert cpus.endswith("CPUs instead of 999")
    assert memory.endswith("instead of 1")
    assert version == "vLLM 0.32.0 instead of 0.31.0"


def test_a_configuration_that_went_wrong_more_often_than_well() -> None:
    subject = make_subject("vllm serve m", happy_paths=[path_of("bad", {"model": "m"}, well=1, badly=4)])
    assert "1 later run went well, 4 did not" in the_only(run_check("history", subject), Level.WARNING).message


DAMAGED = StoreDamagedError("the store is damaged", hint="Look with vllm-monitor check.")


def test_a_store_that_could_not_be_read_is_unknown() -> None:
    assert levels(run_check("history", make_subject("vllm serve m", happy_paths=DAMAGED))) == [Level.UNKNOWN]
    found = the_only(run_check("history", make_subject(happy_paths=DAMAGED)), Level.UNKNOWN)
    assert (found.advice, "the store is damaged" in found.message) == ("Look with vllm-monitor check.", True)
