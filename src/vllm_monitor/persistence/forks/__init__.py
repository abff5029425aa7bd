"""What makes a store survive ``os.fork()``: nothing of SQLite is open in the moment of a fork."""
