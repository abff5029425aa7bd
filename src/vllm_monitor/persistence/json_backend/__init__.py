"""The backend that keeps every record as a line of JSON."""
