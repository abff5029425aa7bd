"""What is told of a server's configuration: the same after each start with the same flags, and never a secret."""

from __future__ import annotations

import enum
import re
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_monitor_engine.config_facts import config_facts, config_fingerprint, kv_facts


class Mode(enum.Enum):
    EAGER = 0


def config(**changes: Any) -> SimpleNamespace:
    """vLLM's configuration, with changes given as ``section__name``."""
    sections: dict[str, dict[str, Any]] = {
        "model_config": {"model": "org/model", "dtype": "bfloat16", "max_model_len": 1024, "hf_token": "hf_secret"},
        "cache_config": {"block_size": 16, "cache_dtype": "auto", "num_gpu_blocks": 512, "other": object()},
        "parallel_config": {"tensor_parallel_size": 2},
        "scheduler_config": {"max_num_seqs": 8, "policy": "fcfs"},
        "compilation_config": {"mode": Mode.EAGER},
    }
    for name, value in changes.items():
        section, _, attribute = name.partition("__")
        sections[section][attribute] = value
    return SimpleNamespace(**{name: SimpleNamespace(**values) for name, values in sections.items()})


def fingerprint(**changes: Any) -> str:
    return config_fingerprint(config_facts(config(**changes), "0.32.0"))


def test_a_fingerprint_is_of_the_flags_alone() -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", fingerprint())
    assert fingerprint() == fingerprint()
    assert fingerprint(cache_config__num_gpu_blocks=77) == fingerprint(), "what was measured is no flag"
    assert fingerprint(cache_config__other=object()) == fingerprint()
    facts = config_facts(config())
    assert config_fingerprint(dict(reversed(facts.items()))) == config_fingerprint(facts)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_config__model", "org/other"),
        ("model_config__dtype", "float16"),
        ("model_config__max_model_len", 2048),
        ("cache_config__block_size", 32),
        ("cache_config__enable_prefix_caching", False),
        ("parallel_config__tensor_parallel_size", 1),
        ("scheduler_config__max_num_seqs", 9),
    ],
)
def test_one_flag_makes_another(name: str, value: Any) -> None:
    assert fingerprint(**{name: value}) != fingerprint()


def test_so_does_another_version() -> None:
    assert config_fingerprint(config_facts(config(), "0.33.0")) != fingerprint()


def test_facts_are_named_apart_and_hold_no_secret() -> None:
    facts = config_facts(config(model_config__model="s3://key:secret@store/model?token=abc"), "0.32.0")
    assert facts == {
        "vllm_version": "0.32.0",
        "model": "s3://store/model",
        "dtype": "bfloat16",
        "max_model_len": 1024,
        "block_size": 16,
        "cache_dtype": "auto",
        "tensor_parallel_size": 2,
        "max_num_seqs": 8,
        "scheduler_policy": "fcfs",
        "compilation_mode": "EAGER",
    }


def test_an_object_has_no_fact_since_its_address_is_another_each_time() -> None:
    assert "dtype" not in config_facts(config(model_config__dtype=object()))
    assert "seed" not in config_facts(config(model_config__seed=float("nan")))


def test_the_kv_cache_is_known_when_the_engine_has_measured_it() -> None:
    assert kv_facts(config()) == {"num_gpu_blocks": 512, "block_size": 16, "kv_capacity_tokens": 8192}
    assert kv_facts(config(cache_config__num_gpu_blocks=None)) == {"block_size": 16}
    assert kv_facts(config(cache_config__kv_cache_size_tokens=8000))["kv_engine_tokens"] == 8000


class Bad:
    def __getattr__(self, name: str) -> Any:
        raise MemoryError(name)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(None, id="none"),
        pytest.param(object(), id="empty"),
        pytest.param(Bad(), id="it raises"),
        pytest.param(SimpleNamespace(model_config=Bad(), cache_config="cache"), id="sections"),
    ],
)
def test_unknown_shapes_leave_facts_out(shape: Any) -> None:
    assert config_facts(shape) == {}
    assert kv_facts(shape) == {}
