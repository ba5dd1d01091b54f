"""What people drew: points to start from, skeletons, and painted volumes, in the files that their tools write."""
