"""The fast engine: Whisper on OpenVINO, with our own decoding rules; imports neither torch nor openai-whisper."""
