"""Everything that knows Whisper: checkpoints, engines, worker threads, transcripts."""

import os

# Read once, when torch is first imported, which only modules of this package do: between inferences, OpenMP threads
# must sleep rather than spin, so that an idle server costs nothing and the event loop gets its turn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
