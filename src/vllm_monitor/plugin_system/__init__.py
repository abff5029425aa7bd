"""Plugins: code of the operator's own, in processes of its own, and only what the operator trusts."""

from vllm_monitor.plugin_system.answers import Panel
from vllm_monitor.plugin_system.delivery import PluginStore
from vllm_monitor.plugin_system.manager import PluginManager
from vllm_monitor.plugin_system.trust import TrustList, sha256_of, trust_list_of
from vllm_monitor.records import PLUGIN_VERBS, PluginContext, PluginKind, PluginState, PluginStatus, TargetView

__all__ = [
    "PLUGIN_VERBS",
    "Panel",
    "PluginContext",
    "PluginKind",
    "PluginManager",
    "PluginState",
    "PluginStatus",
    "PluginStore",
    "TargetView",
    "TrustList",
    "sha256_of",
    "trust_list_of",
]
