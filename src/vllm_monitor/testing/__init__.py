"""Contract suites: what an implementation of ours, or of yours, must do, as tests to be subclassed."""

from vllm_monitor.testing.persistence_contract import PersistenceContract

__all__ = ["PersistenceContract"]
