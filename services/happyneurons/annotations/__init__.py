"""What people drew: points to start from."""
