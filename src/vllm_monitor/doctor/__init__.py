"""The check before a start: the machine, the environment, and the command that will run there.

:func:`examine` only looks. What is safe to put right is listed by :func:`fixes_of`, and done by :func:`apply_fixes`.
"""

from vllm_monitor.doctor.examination import CHECKS, apply_fixes, examine, fixes_of
from vllm_monitor.doctor.findings import Finding, Fix, FixResult, Level, worst_of
from vllm_monitor.doctor.flag_rules import RULES
from vllm_monitor.doctor.gpu_reading import Gpu, Gpus, read_gpus
from vllm_monitor.doctor.installation import Installation, Plugin, default_interpreter, look_into
from vllm_monitor.doctor.launch import Launch, parse_launch
from vllm_monitor.doctor.subject import Machine, Subject

__all__ = [
    "CHECKS",
    "RULES",
    "Finding",
    "Fix",
    "FixResult",
    "Gpu",
    "Gpus",
    "Installation",
    "Launch",
    "Level",
    "Machine",
    "Plugin",
    "Subject",
    "apply_fixes",
    "default_interpreter",
    "examine",
    "fixes_of",
    "look_into",
    "parse_launch",
    "read_gpus",
    "worst_of",
]
