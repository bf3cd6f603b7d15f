"""What clients send: live feeds, forms and recordings, turned into segments of a job."""
