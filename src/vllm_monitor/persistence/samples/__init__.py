"""Samples: hot rows, sealed blocks, roll-ups, and the questions that are asked of them."""
