"""The fast engine: Whisper on OpenVINO, with decoding rules of our own; imports neither torch nor openai-whisper."""
