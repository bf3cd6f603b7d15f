"""What a job does with its frames."""
