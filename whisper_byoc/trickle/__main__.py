"""`python -m whisper_byoc.trickle …` is `whisper-byoc trickle serve …`."""

import sys

from whisper_byoc.cli.main import main

raise SystemExit(main(["trickle", "serve", *sys.argv[1:]]))
