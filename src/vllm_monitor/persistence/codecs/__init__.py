"""Values, texts and numbers as a database can hold them, and back."""
