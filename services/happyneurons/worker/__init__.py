"""What runs inside a stage image: the rank farm, progress and drain, the job server, launching."""
