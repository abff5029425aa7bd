"""The terminal view of ``vllm-monitor watch``: what is wrong, since when, why, and what moved.

::

    live_view     the door: takes pictures, draws on a terminal or prints lines, ends with a summary
    watched       everything seen so far: one TargetHistory per target, recent events, the store
    screen        what stands where on a screen of a given size
    fleet         one row per target, the most urgent first
    sections      the parts of the screen of one target      figures   its table of numbers
    arrange       shares out the lines of a screen           tables    columns of one line
    plain         lines for pipes and log files              summary   the last words
    conditions    urgency, words and colours of conditions   format    numbers for people
    safe_text     text of others made harmless               sparkline a series in one line
    held_stderr   keeps stray output off the full screen

Everything that came from outside passes through :class:`~vllm_monitor.terminal.safe_text.Script` before it
becomes a rich ``Text``, so neither markup nor control codes are ever interpreted.
"""

from vllm_monitor.terminal.live_view import LiveView
from vllm_monitor.terminal.store_line import StoreLine

__all__ = ["LiveView", "StoreLine"]
