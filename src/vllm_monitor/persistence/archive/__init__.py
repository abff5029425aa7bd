"""Export, import, and the merging of one store into another."""
