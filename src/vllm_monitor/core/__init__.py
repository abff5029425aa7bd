"""The monitor itself: settings, the step in which the rooms meet, the watch, replay."""

from vllm_monitor.core.config import MonitorConfig, TargetSettings
from vllm_monitor.core.inside_progress import inside_event
from vllm_monitor.core.inside_stories import InsideStories
from vllm_monitor.core.monitor import VLLMMonitor
from vllm_monitor.core.pipeline import TargetPipeline, Tick
from vllm_monitor.core.recording_report import RecordingReport, ScoredPrediction
from vllm_monitor.core.replay import ReplayReport, count_ticks, replay_ticks
from vllm_monitor.core.tick_json import alert_as_json, event_as_json, prediction_as_json, tick_as_json

__all__ = [
    "InsideStories",
    "MonitorConfig",
    "RecordingReport",
    "ReplayReport",
    "ScoredPrediction",
    "TargetPipeline",
    "TargetSettings",
    "Tick",
    "VLLMMonitor",
    "alert_as_json",
    "count_ticks",
    "event_as_json",
    "inside_event",
    "prediction_as_json",
    "replay_ticks",
    "tick_as_json",
]
