"""What openai-whisper makes of sound, for `test_real_weights.py`: `python reference.py MODEL FOLDER`.

FOLDER has samples (`NAME.npy`) and `languages.json`, name to language. Writes one JSON object a line. A process of its
own, for torch and OpenVINO in one process take each other's CPUs.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from whisper.decoding import DecodingOptions, decode

from whisper_byoc.speech import models
from whisper_byoc.speech.engine import DecodeOptions
from whisper_byoc.speech.fast.mel import log_mel
from whisper_byoc.speech.openai_engine import OpenAIEngine

WINDOW = 30 * 16_000


def main(name, folder):
    engine = OpenAIEngine(models.load_model(name))
    engine.use_threads(2)
    for clip, language in json.loads((folder / "languages.json").read_text()).items():
        samples = np.load(folder / f"{clip}.npy")
        text = engine.transcribe(samples, DecodeOptions(language, words=True)).result()
        words = [[word.start, word.end] for segment in text.segments for word in segment.words]
        found = {"text": text.text, "words": words, "window": decode_window(engine.model, samples, language)}
        print(json.dumps({"clip": clip, **found}), flush=True)


def decode_window(model, samples, language):
    """Decode the first 30 s, with timestamps and without."""
    mel = log_mel(samples[:WINDOW], model.dims.n_mels)
    padded = torch.from_numpy(np.pad(mel, ((0, 0), (0, 3000 - mel.shape[1]))))
    with torch.no_grad():
        (encoded,) = model.embed_audio(padded[None])
    results = [
        decode(model, encoded, DecodingOptions(language=language, without_timestamps=without, fp16=False))
        for without in (False, True)
    ]
    return [{"tokens": each.tokens, "scores": [each.avg_logprob, each.no_speech_prob]} for each in results]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
