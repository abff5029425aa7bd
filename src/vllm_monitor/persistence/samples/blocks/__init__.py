"""Sealed blocks: many samples in few bytes, one series of which can be read alone."""
