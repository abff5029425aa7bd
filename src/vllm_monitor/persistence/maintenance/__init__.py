"""What runs beside the writer: sealing, joining, retention, giving room back."""
