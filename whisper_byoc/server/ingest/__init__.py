"""What clients send: live feeds, forms and recordings, made into segments of a job."""
