"""The score of predictions, recomputed from what is stored: table, JSON, pictures."""
