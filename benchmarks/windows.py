"""What a short window costs in words: `python benchmarks/windows.py [--model NAME] [--speech FOLDER] [--json]`.

Every clip shorter than 27 s is decoded without a second attempt, but for what its text leaves out, in four ways: on
all 30 s; on its sound and a margin; on that with the model's view of silence behind it; and with every eighth position
of that only, which is what the fast engine does. Model and speech as in engines.py.
"""

from __future__ import annotations

import time

from clips import Clip, read_clips
from options import run, speech_parser
from report import Row, emit, machine
from scoring import compare, total, words

from whisper_byoc.speech.engine import DecodeOptions, never
from whisper_byoc.speech.fast.mel import log_mel
from whisper_byoc.speech.fast.model import FastModel
from whisper_byoc.speech.fast.network import Network
from whisper_byoc.speech.fast.silence import STRIDE, encoded_silence
from whisper_byoc.speech.fast.windows import LONGEST_SHORT, Attempt, Request, Windows, transcribe
from whisper_byoc.speech.hallucination import max_tokens
from whisper_byoc.speech.models import load_fast_model

MARGINS = (0.5, 1.0, 1.5)


def main() -> None:
    """Decode all clips in every way."""
    args = speech_parser(__doc__ or "").parse_args()
    about, model = machine(), load_fast_model(args.model, args.model_dir)
    clips = [
        clip
        for clip in read_clips(args.speech, quick=args.quick)
        if clip.reference and len(clip.samples) < LONGEST_SHORT * 16_000
    ]
    whole = encoded_silence(model.encoder, model.dims, 1)
    ways = {
        "nothing behind": model.network(args.threads, whole[:, :, :, :0], 1),
        "silence behind": model.network(args.threads, whole, 1),
        f"every {STRIDE}th of it": model.network(args.threads),
    }
    rows = [measure(model, model.network(args.threads), clips, "30 s", None)]
    for margin in MARGINS[:1] if args.quick else MARGINS:
        rows += [measure(model, network, clips, way, margin) for way, network in ways.items()]
    title = f"{args.model}, {len(clips)} clips, {args.threads} threads"
    emit("windows", {title: rows}, as_json=args.json, about=about)


def measure(model: FastModel, network: Network, clips: list[Clip], way: str, margin: float | None) -> Row:
    """Decode all clips; a margin of None means all 30 s."""
    scores, began = [], time.process_time()
    for clip in clips:
        windows = Windows(network, log_mel(clip.samples, model.dims.n_mels), never, margin or 0.0)
        limit = max_tokens(len(clip.samples) / 16_000)
        request = Request(DecodeOptions(), limit, timestamps=False, attempts=(Attempt(full=margin is None),))
        found = network.run(transcribe(model, windows, request, never))
        scores.append(compare(words(clip.reference), words(" ".join(each.text for each in found))))
    took, score = time.process_time() - began, total(scores)
    return {
        "window": way,
        "margin s": margin,
        "errors %": float(score.error_rate),
        "wrong": score.wrong,
        "lost": score.lost,
        "extra": score.extra,
        "words": score.said,
        "CPU s": took,
    }


if __name__ == "__main__":
    run(main)
