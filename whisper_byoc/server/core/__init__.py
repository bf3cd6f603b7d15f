"""Jobs: what comes in, what comes out, and which pipeline works on it."""
