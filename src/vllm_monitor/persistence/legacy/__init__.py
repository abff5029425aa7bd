"""Import of the earlier design."""
