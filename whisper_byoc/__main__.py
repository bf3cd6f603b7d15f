"""`python -m whisper_byoc …` is `whisper-byoc …`."""

from whisper_byoc.cli import script

script()
