"""What a job is: spec and key, attempts, journal, publication, and the stage contract."""
