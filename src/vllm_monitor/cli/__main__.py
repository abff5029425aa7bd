"""``python -m vllm_monitor.cli``, the same as ``vllm-monitor``."""

from vllm_monitor.cli.app import main

if __name__ == "__main__":
    main()
