"""`python -m whisper_byoc.trickle`: a trickle server on its own."""

from whisper_byoc.trickle.standalone import main

if __name__ == "__main__":
    raise SystemExit(main())
