"""Train the demo model on what `generate` made.

    python -m tools.demo_model.train --folder build/demo-model

It has the rounds of `schedule`. It goes on from a round's last checkpoint, and stops with one at Ctrl-C or SIGTERM.
Every batch comes from the seed and its number, so a run that was stopped takes the same steps as one that was not. The
model is exported in openai-whisper's format with each checkpoint; the last round's, `wide.pt`, is the result.

Two processes with one thread each share every batch and exchange gradients once a step: on a busy machine that is much
faster than one process with two threads, which wait for each other thousands of times a step.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor, distributed, nn
from tqdm import tqdm

from tools.demo_model import noise
from tools.demo_model.batches import Batch, collate
from tools.demo_model.corpus import Corpus
from tools.demo_model.generate import log_mel
from tools.demo_model.losses import loss
from tools.demo_model.network import Network, Shape
from tools.demo_model.schedule import BATCH_FRAMES, ROUNDS, Round, Stage, most_segments
from tools.demo_model.targets import PROMPT_TOKENS, Writer
from tools.demo_model.tokens import Tokens
from tools.demo_model.windows import WINDOW_FRAMES, Composer

SEED = 5
NOISES = 96
MATRIX_RATE, OTHER_RATE = 0.02, 1.5e-3
AVERAGING = 0.998
CHECKPOINT_STEPS = 500


class Batches:
    """Batch number n of the training."""

    def __init__(self, corpus: Corpus, tokens: Tokens, seed: int, warp: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        samples = WINDOW_FRAMES * 160
        noises = [log_mel(noise.varied(samples, rng)).astype(np.float32)[:WINDOW_FRAMES] for _ in range(NOISES)]
        self._composer = Composer(corpus, noises, warp=warp)
        self._writer = Writer(tokens)
        self._seed = seed

    def training(self, step: int, stage: Stage, team: "Team") -> Batch:
        """Return this process's part of the batch of a step, which belongs to the stage."""
        frames = random.Random(f"{self._seed} {step}").choice(stage.frames)
        prompts = stage.long_prompt_share if frames == WINDOW_FRAMES else stage.short_prompt_share
        rng = random.Random(f"{self._seed} {step} {team.rank}")
        return self.batch(BATCH_FRAMES // frames // team.size, frames, prompts, rng, augment=stage.vary)

    def batch(self, windows: int, frames: int, prompts: float, rng: random.Random, *, augment: bool) -> Batch:
        """Return so many windows of so many frames, a share of them with a prompt."""
        longest = PROMPT_TOKENS if frames == WINDOW_FRAMES else 40
        most = most_segments(frames)
        composed = [self._composer.compose(frames, most, rng, vary=augment) for _ in range(windows)]
        sequences = [self._writer.write(window, prompts, longest, rng) for window in composed]
        return collate(composed, sequences, rng, augment=augment)


class Team:
    """The processes that train together."""

    def __init__(self, rank: int, size: int, meeting: Path) -> None:
        """Join as number `rank` of `size`; `meeting` is a file of this run's, through which they find each other."""
        self.rank = rank
        self.size = size
        if size > 1:
            distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)

    def agree(self, parameters: list[nn.Parameter], stop: bool) -> bool:
        """Replace the gradients by their mean over all processes; return whether any of them wants to stop."""
        if self.size == 1:
            return stop
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor([float(stop)])])
        distributed.all_reduce(flat)
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient) / self.size)
            start += gradient.numel()
        return bool(flat[-1])

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            distributed.barrier()


class Training:
    """Network, optimisers and averaged weights, as one thing to step, save and load."""

    def __init__(self, shape: Shape, tokens: Tokens, begin_with: Path | None = None) -> None:
        """Begin with nothing, or with the weights of an exported model."""
        torch.manual_seed(SEED)
        self.network = Network(shape, tokens)
        if begin_with:
            self.network.adopt(torch.load(begin_with, weights_only=True)["model_state_dict"])
        named = list(self.network.named_parameters())
        matrices = [p for name, p in named if p.ndim == 2 and name.startswith(("encoder.blocks.", "decoder."))]
        chosen = {id(parameter) for parameter in matrices}
        others = [p for _, p in named if id(p) not in chosen]
        self._optimisers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=MATRIX_RATE, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
        )
        self.average: dict[str, Tensor] = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.step = 0
        self.cpu_seconds = 0.0

    def advance(self, batch: Batch, scale: float, team: Team, stop: bool) -> tuple[dict[str, float], bool]:
        """Take a step, the learning rates scaled; return the parts of the loss, and whether to stop."""
        for optimiser, rate in zip(self._optimisers, (MATRIX_RATE, OTHER_RATE), strict=True):
            optimiser.zero_grad()
            for group in optimiser.param_groups:
                group["lr"] = rate * scale
        result = loss(self.network, batch)
        torch.autograd.backward(result.total)
        stop = team.agree(list(self.network.parameters()), stop)
        nn.utils.clip_grad_norm_(self.network.parameters(), 2.0)
        for optimiser in self._optimisers:
            optimiser.step()
        self.step += 1
        keep = min(AVERAGING, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - keep)
        return result.parts, stop

    def averaged(self) -> Network:
        """Return a network with the averaged weights."""
        network = Network(self.network.shape, self.network.tokens)
        network.load_state_dict(self.average)
        return network.eval()

    def save(self, path: Path, phonemes: list[str]) -> None:
        """Write all that is needed to go on."""
        state = {
            "shape": asdict(self.network.shape),
            "network": self.network.state_dict(),
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self._optimisers],
            "step": self.step,
            "cpu_seconds": self.cpu_seconds,
            "phonemes": phonemes,
        }
        unfinished = path.with_suffix(".part")
        torch.save(state, unfinished)
        unfinished.replace(path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average = state["average"]
        for optimiser, saved in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.cpu_seconds = state["step"], state["cpu_seconds"]


@torch.no_grad()
def watch(network: Network, batches: dict[str, Batch]) -> dict[str, float]:
    """Return for each batch that is watched how many of its pieces of words are right, given what came before."""
    return {name: round(loss(network, batch).parts["right"], 4) for name, batch in batches.items()}


def watched(folder: Path, corpus: Corpus, tokens: Tokens) -> dict[str, Batch]:
    """Return the batches to watch: short windows of heard and of held-out voices, and full ones."""
    found: dict[str, Batch] = {}
    for name, files, windows, frames in (
        ("heard", ("watch-heard",), 48, 600),
        ("held out", ("watch-held-out",), 48, 600),
        ("flite held out", ("watch-flite",), 48, 600),
        ("30 s", ("watch-heard", "watch-held-out"), 16, WINDOW_FRAMES),
    ):
        paths = [path for file in files if (path := folder / f"{file}.pt").exists()]
        if paths:
            batches = Batches(Corpus(paths, corpus.phonemes), tokens, SEED + 1)
            found[name] = batches.batch(windows, frames, 0.3, random.Random(SEED), augment=False)
    return found


def train(folder: Path, which: Round, begin_with: Path | None, team: Team) -> bool:
    """Train a round, from its last checkpoint in the folder if there is one; return whether it came to its end."""
    tokens = Tokens()
    corpus = Corpus([path for name in ("espeak", "flite") for path in sorted(folder.glob(f"{name}-{which.parts}.pt"))])
    training = Training(Shape(phonemes=len(corpus.phonemes)), tokens, begin_with)
    checkpoint = folder / f"{which.name}.ckpt"
    if checkpoint.exists():
        training.load(checkpoint)
    batches = Batches(corpus, tokens, SEED, which.warp)
    report = _Report(folder / f"{which.name}.pt", corpus, tokens) if team.rank == 0 else None
    asked = _Stop()
    stop = False
    before = time.process_time()
    with tqdm(total=which.steps, initial=training.step, unit="step", disable=None if report else True) as bar:
        while training.step < which.steps and not stop:
            batch = batches.training(training.step, which.stage(training.step), team)
            parts, stop = training.advance(batch, which.rate_scale(training.step), team, asked.now)
            training.cpu_seconds += team.size * (-before + (before := time.process_time()))
            bar.update()
            if report:
                report.step(training, parts)
                if stop or training.step in (which.steps, *range(0, which.steps, CHECKPOINT_STEPS)):
                    report.watch(training)
                    training.save(checkpoint, corpus.phonemes)
    return training.step == which.steps


class _Report:
    """What the first process tells: a line of JSON now and then, and the model so far."""

    def __init__(self, model: Path, corpus: Corpus, tokens: Tokens) -> None:
        self._model = model
        self._watched = watched(model.parent, corpus, tokens)
        self._recent: defaultdict[str, list[float]] = defaultdict(list)
        self._log({"utterances": len(corpus), "tokens": len(tokens.rows)})

    def step(self, training: Training, parts: dict[str, float]) -> None:
        for name, value in parts.items():
            self._recent[name].append(value)
        if training.step % 50 == 0:
            means = {name: round(float(np.nanmean(values)), 3) for name, values in self._recent.items()}
            self._log({"step": training.step, "cpu_minutes": round(training.cpu_seconds / 60, 1), **means})
            self._recent.clear()

    def watch(self, training: Training) -> None:
        network = training.averaged()
        network.export(self._model)
        self._log({"step": training.step, "watched": watch(network, self._watched)})

    def _log(self, entry: dict[str, object]) -> None:
        line = json.dumps({"time": time.strftime("%H:%M:%S"), **entry})
        tqdm.write(line)
        sys.stdout.flush()
        with self._model.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class _Stop:
    """Becomes true at Ctrl-C or SIGTERM."""

    def __init__(self) -> None:
        self.now = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.now = True


def _join(rank: int, size: int, meeting: Path, folder: Path, start_from: Path | None) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")  # room for the kernels of all shapes
    team = Team(rank, size, meeting)
    begin_with = start_from
    for which in ROUNDS if start_from is None else ROUNDS[1:]:
        if not train(folder, which, begin_with, team):
            return
        team.wait()
        begin_with = folder / f"{which.name}.pt"


def main() -> int:
    """Run the command line; 0 is success."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--folder", type=Path, default=Path("build/demo-model"), help="default: %(default)s")
    parser.add_argument("--start-from", type=Path, help="leave out the first round: this model is its result")
    parser.add_argument("--processes", type=int, default=2, help="default: %(default)s")
    arguments = parser.parse_args()
    if not list(arguments.folder.glob("espeak-*.pt")):
        print(f"{arguments.folder} has no speech: run `python -m tools.demo_model.generate` first.", file=sys.stderr)
        return 1
    size = arguments.processes
    with tempfile.TemporaryDirectory() as meeting_folder:
        job = (size, Path(meeting_folder) / "meeting", arguments.folder, arguments.start_from)
        helpers = [
            get_context("spawn").Process(target=_join, args=(rank, *job), daemon=True) for rank in range(1, size)
        ]
        for helper in helpers:
            helper.start()
        _join(0, *job)
        for helper in helpers:
            helper.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
