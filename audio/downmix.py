"""Many channels to one, so that no channel is lost: neither to another in opposite phase, nor to a silent one."""

import numpy as np
from numpy.typing import NDArray

BLOCK_SECONDS = 0.04
"""The channels are weighted anew so often; a stream is held back for as long."""
MEMORY_SECONDS = 5.0
"""What was heard so long ago counts 1/e of what is heard now: a pause between words changes no weight."""
AUDIBLE = 1e-3
"""A channel of less energy than this part of the loudest one's, -30 dB, is silent."""
OPPOSITE = -0.8
"""From this correlation with the loudest channel on, a channel is turned over: the sum would cancel out."""


class Downmix:
    """The mean of the channels that are heard; those in opposite phase to the loudest are turned over first."""

    def __init__(self, channels: int, rate: int) -> None:
        """`rate` is in Hz."""
        self._block = max(1, round(rate * BLOCK_SECONDS))
        self._rest = np.empty((0, channels), dtype=np.float32)
        self._decay = float(np.exp(-BLOCK_SECONDS / MEMORY_SECONDS))
        self._energy = np.zeros((channels, channels))  # the channels' products, decayed
        self._weights: NDArray[np.float32] | None = None  # of the block before

    def feed(self, frames: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the mix of the blocks that `frames`, shape (n, channels), complete: shape (m,), in [-1, 1]."""
        if len(self._rest):
            frames = np.concatenate((self._rest, frames))
        whole = len(frames) - len(frames) % self._block
        self._rest = frames[whole:].copy()
        return self._mix(frames[:whole].reshape(-1, self._block, frames.shape[1]))

    def finish(self) -> NDArray[np.float32]:
        """Return the mix of what is left: shape (m,); m may be 0."""
        rest, self._rest = self._rest, self._rest[:0]
        return self._mix(rest[np.newaxis]) if len(rest) else np.empty(0, dtype=np.float32)

    def _mix(self, blocks: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mix blocks of frames, shape (b, n, channels)."""
        mixed: NDArray[np.float32] = np.empty(blocks.shape[:2], dtype=np.float32)
        products = blocks.transpose(0, 2, 1) @ blocks
        for number, block in enumerate(blocks):
            self._energy = self._energy * self._decay + products[number]
            weights = self._weigh()
            before = weights if self._weights is None else self._weights
            if weights @ before < 0:  # two opposite channels take turns at being the loudest
                weights = -weights
            mixed[number] = block @ weights
            if not np.array_equal(before, weights):  # from one to the other without a click
                share = np.linspace(0, 1, len(block), dtype=np.float32)
                mixed[number] = share * mixed[number] + (1 - share) * (block @ before)
            self._weights = weights
        np.clip(mixed, -1, 1, out=mixed)
        return mixed.reshape(-1)

    def _weigh(self) -> NDArray[np.float32]:
        own = self._energy.diagonal()
        loudest = int(own.argmax())
        heard = max(1, np.count_nonzero(own > own[loudest] * AUDIBLE))
        opposite = self._energy[loudest] < OPPOSITE * np.sqrt(own * own[loudest])
        weights: NDArray[np.float32] = (np.where(opposite, -1, 1) / heard).astype(np.float32)
        return weights
