"""What the training hears when, and how fast it learns."""

from dataclasses import dataclass

from tools.demo_model.windows import WINDOW_FRAMES

BATCH_FRAMES = 19_200
"""How many frames of 10 ms a batch has, all processes together, whatever the length of its windows."""
WARM_UP_STEPS = 150


@dataclass(frozen=True)
class Stage:
    """A part of a round: how long its windows are, and what they hold."""

    until: float
    """The share of the round's steps at which it ends."""
    frames: tuple[int, ...]
    """Lengths of windows, each as likely; divisors of BATCH_FRAMES where possible."""
    short_prompt_share: float
    long_prompt_share: float
    """Of the windows of 30 s."""
    vary: bool = True
    """Whether utterances are varied and spectra masked: a model that has not heard all of them once needs neither."""


@dataclass(frozen=True)
class Round:
    """A training from its warm-up to the end of the learning rates' decline, on speech of its own."""

    name: str
    """Of its files: `<name>.ckpt` to go on from, `<name>.pt` the model in openai-whisper's format."""
    parts: str
    """Which of the parts that `generate` makes it hears: a pattern that follows `espeak-` or `flite-`."""
    steps: int
    rate: float
    """What the learning rates are multiplied by throughout."""
    decay_share: float
    """The share of the steps, the last ones, over which they fall linearly."""
    warp: float
    """How far frequencies are stretched (see `Composer`)."""
    stages: tuple[Stage, ...]

    def stage(self, step: int) -> Stage:
        """Return the stage that a step belongs to."""
        return next(stage for stage in self.stages if step < stage.until * self.steps)

    def rate_scale(self, step: int) -> float:
        """Return what the learning rates are multiplied by: a warm-up, a plateau, a linear decline to 1 %."""
        remaining = (self.steps - step) / self.steps
        return self.rate * min(1.0, (step + 1) / WARM_UP_STEPS, max(0.01, remaining / self.decay_share))


_SHORT = (300, 400, 600)
_ALL = (*_SHORT, 1000, 1500, WINDOW_FRAMES, WINDOW_FRAMES, WINDOW_FRAMES)

FIRST = Round(
    name="first",
    parts="[0-9]",
    steps=8000,
    rate=1.0,
    decay_share=0.45,
    warp=0.12,
    stages=(
        Stage(0.24, _SHORT, 0.05, 0.0, vary=False),
        Stage(0.42, (*_SHORT, 1000, 1000, 1500), 0.1, 0.0),
        Stage(0.54, (*_SHORT, 1000, 1500, WINDOW_FRAMES), 0.12, 0.3),
        Stage(1.0, _ALL, 0.12, 0.4),
    ),
)
"""To hear words, then to find the place among several utterances, then 30 s."""
WIDE = Round(
    name="wide",
    parts="wide-*",
    steps=6700,
    rate=0.5,
    decay_share=0.7,
    warp=0.15,
    stages=(Stage(1.0, _ALL, 0.12, 0.4),),
)
"""To understand strangers: more accents, more speakers. It goes on from the first round's model."""
ROUNDS = (FIRST, WIDE)


def most_segments(frames: int) -> int:
    """Return how many utterances a window has at most: 14 in 30 s, where not all of them fit as a rule."""
    return max(2, min(14, frames // 160))
