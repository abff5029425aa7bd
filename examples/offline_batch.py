"""A batch through ``vllm.LLM``, recorded: what each request took is in the store afterwards.

    python examples/offline_batch.py MODEL [STORE]

Needs vllm-monitor and vllm-monitor-engine in vLLM's environment.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vllm_monitor.persistence import PersistenceConfig, PersistenceManager
from vllm_monitor.vllm_engine_integration import create_monitored_engine


def main(model: str, storage_dir: Path) -> None:
    config = PersistenceConfig(storage_dir=storage_dir)
    options = {"model": model, "max_model_len": 1024, "enforce_eager": True}
    with create_monitored_engine(options, persistence_config=config, target="offline") as engine:
        engine.generate([f"Tell me of the number {number}." for number in range(8)])
    with PersistenceManager(config) as store:
        for request in store.get_requests(limit=None, target="offline"):
            print(f"{request.prompt_tokens} tokens in, {request.output_tokens} out in {request.duration_seconds:.2f} s")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else Path("monitor_data"))
