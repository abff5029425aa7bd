"""Guardrails, plugins and strategies: documents that a person edits and that merge entry by entry."""
