"""What a server looks like now: canonical numbers, rates, quantiles, the progress heartbeat and the condition."""

from vllm_monitor.picture.judge import Judgement
from vllm_monitor.picture.life_evidence import LifeEvidence, ServerIdentity
from vllm_monitor.picture.snapshot import Snapshot
from vllm_monitor.picture.startup import StartupPhase
from vllm_monitor.picture.stored_pages import StoredPages
from vllm_monitor.picture.target_picture import TargetPicture
from vllm_monitor.records.vocabulary import DERIVED, FAMILIES, Family, canonical_help

__all__ = [
    "DERIVED",
    "FAMILIES",
    "Family",
    "Judgement",
    "LifeEvidence",
    "ServerIdentity",
    "Snapshot",
    "StartupPhase",
    "StoredPages",
    "TargetPicture",
    "canonical_help",
]
