"""What `whisper-byoc doctor` looks at."""
