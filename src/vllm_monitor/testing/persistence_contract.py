"""The contract suite of the store: what every backend must do, as tests that anyone can run on theirs."""

from __future__ import annotations

from vllm_monitor.testing.archive_contract import ArchiveContract
from vllm_monitor.testing.document_contract import DocumentContract
from vllm_monitor.testing.lifetime_contract import LifetimeContract
from vllm_monitor.testing.record_contract import RecordContract
from vllm_monitor.testing.sample_contract import SampleContract

__all__ = ["PersistenceContract"]


class PersistenceContract(SampleContract, RecordContract, DocumentContract, ArchiveContract, LifetimeContract):
    """Every promise of ``PersistenceManager`` that can be kept by any backend, a test method to the promise.

    Subclass it in a test module, name the settings, and pytest collects it; the class has no other dependency on
    pytest than the name of its fixture ``tmp_path``, an empty folder, which a caller may also pass itself::

        class TestHybrid(PersistenceContract):
            settings: ClassVar = {"backend": StorageBackend.HYBRID}

    ``several_stores = False`` says that a folder cannot be open twice; then the second opening must be refused. A
    backend that takes more than settings overrides ``config``.
    """
