"""Predictions: what will fail, when, how sure it is, and why; every one is settled by itself and scored."""
