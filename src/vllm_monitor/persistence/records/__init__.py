"""Everything that is not a sample: kinds of records, their rows, and the verbs that save and ask for them."""
