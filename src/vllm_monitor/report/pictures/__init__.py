"""The score as pictures: SVG text, written by hand, that needs nothing from outside."""

from vllm_monitor.report.pictures.lead_time import lead_time_picture
from vllm_monitor.report.pictures.reliability import reliability_picture

__all__ = ["lead_time_picture", "reliability_picture"]
