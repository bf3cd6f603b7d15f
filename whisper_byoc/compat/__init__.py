"""Import names of the tutorial's scripts; used by `whisper-byoc run` only, never installed under those names."""
