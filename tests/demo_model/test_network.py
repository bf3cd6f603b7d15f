"""The network in training is the Whisper that it is exported as."""

import random
import zipfile
from fnmatch import fnmatch

import numpy as np
import pytest
import torch
import whisper

from tools.demo_model import generate, schedule, train
from tools.demo_model.batches import Batch
from tools.demo_model.losses import guided_layers, loss
from tools.demo_model.network import Network, Shape, _mix
from tools.demo_model.pack import pack
from tools.demo_model.tokens import VOCABULARY_SIZE, Tokens
from tools.demo_model.windows import ONSET_CLASSES

TOKENS = Tokens()


def network(**changes):
    torch.manual_seed(1)
    return Network(Shape(width=16, heads=2, encoder_layers=2, decoder_layers=2, phonemes=3, **changes), TOKENS).eval()


def batch(windows=2, frames=40, tokens=6):
    generator = torch.Generator().manual_seed(2)

    def labels(classes):
        return torch.randint(classes, (windows, frames // 2), generator=generator)

    spans = torch.tensor([[[1, 4]] * tokens] * windows)
    text = torch.randint(TOKENS.texts, (windows, tokens), generator=generator)
    mel = torch.randn(windows, 80, frames, generator=generator)
    positions = torch.arange(tokens).expand(windows, -1)
    offset = torch.tensor([0, 700][:windows])
    return Batch(mel, offset, text, text, positions, spans, spans, labels(4), labels(3), labels(ONSET_CLASSES))


def test_the_export_is_a_whisper_with_the_same_logits(tmp_path):
    """Also of unused tokens: one constant stands for them in training, zeros in the file."""
    trained = network()
    trained.export(tmp_path / "small.pt")
    exported = whisper.load_model(str(tmp_path / "small.pt"), device="cpu")
    mel = torch.randn(1, 80, 3000)
    read = [TOKENS.sot, TOKENS.timestamp(0.4), *TOKENS.words[7], *TOKENS.words[200]]
    with torch.no_grad():
        sound, _ = trained.encode(mel, torch.tensor([0]))
        text, _ = trained.decode(torch.tensor([read]), torch.arange(len(read))[None], sound, range(1, 2))
        ours = text @ trained.embedding().t()
        theirs = exported.logits(torch.tensor([[TOKENS.rows[token] for token in read]]), exported.embed_audio(mel))
    assert theirs.shape[-1] == VOCABULARY_SIZE
    assert theirs[..., TOKENS.rows].numpy() == pytest.approx(ours.numpy(), abs=0.05)  # half precision in the file
    unused = torch.ones(VOCABULARY_SIZE, dtype=torch.bool)
    unused[TOKENS.rows] = False
    assert not theirs[..., unused].any()
    with_constant = torch.cat([ours, torch.full_like(ours[..., :1], TOKENS.unused_logit)], -1)
    assert with_constant.logsumexp(-1).numpy() == pytest.approx(theirs.logsumexp(-1).numpy(), abs=0.05)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [7, 300])
def test_attention_in_parts_is_attention(causal, length):
    query, key, value = (torch.randn(50, 2, length, 8) for _ in range(3))
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    assert _mix(query, key, value, causal=causal).numpy() == pytest.approx(theirs.numpy(), abs=1e-5)


def test_the_guided_layers_end_with_those_word_times_come_from():
    behind, ahead = guided_layers(4)
    assert (behind, ahead) == (1, range(2, 4))
    model = whisper.model.Whisper(Shape(width=16, heads=2).dimensions())
    assert model.alignment_heads.to_dense().any(1).tolist() == [index in ahead for index in range(4)]


def test_the_loss_falls_and_every_part_of_it_counts():
    net = network()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    first = last = loss(net, batch(), half=False)
    for _ in range(15):
        optimiser.zero_grad()
        last = loss(net, batch(), half=False)
        last.total.backward()
        optimiser.step()
    assert set(first.parts) == {"tokens", "phonemes", "words", "onsets", "behind", "ahead", "right"}
    assert sum(value for name, value in first.parts.items() if name != "right") == pytest.approx(first.total.item())
    for name, before in first.parts.items():
        assert last.parts[name] < before or name == "right", name
    assert all(parameter.grad is not None for parameter in net.parameters() if parameter.requires_grad)


def test_a_batch_without_labels_and_spans_has_a_loss():
    nothing = batch()
    for labels in (nothing.phonemes, nothing.words, nothing.onsets, nothing.ahead, nothing.behind):
        labels.fill_(-100)
    assert torch.isfinite(loss(network(), nothing, half=False).total)


def test_training_goes_on_where_it_stopped(tmp_path):
    alone = train.Team(0, 1, tmp_path / "unused")
    shape = Shape(width=16, heads=2, encoder_layers=2, decoder_layers=2, phonemes=3)
    straight = train.Training(shape, TOKENS)
    for _ in range(4):
        straight.advance(batch(), 1.0, alone, stop=False)
    stopped = train.Training(shape, TOKENS)
    for _ in range(2):
        stopped.advance(batch(), 1.0, alone, stop=False)
    stopped.save(tmp_path / "training.ckpt", ["a", "b", "c"])
    resumed = train.Training(shape, TOKENS)
    resumed.load(tmp_path / "training.ckpt")
    for _ in range(2):
        resumed.advance(batch(), 1.0, alone, stop=False)
    assert resumed.step == 4
    for name, value in straight.average.items():
        assert torch.equal(value, resumed.average[name]), name


def test_the_first_step_has_the_weights_it_begins_with(tmp_path):
    """Up to half precision, in which they are exported."""
    before = network()
    before.export(tmp_path / "small.pt")
    after = train.Training(before.shape, TOKENS, tmp_path / "small.pt").network
    for name, value in before.checkpoint()["model_state_dict"].items():
        other = after.checkpoint()["model_state_dict"][name]
        assert torch.allclose(other.float(), value.float(), atol=4e-3), name


@pytest.mark.parametrize("which", schedule.ROUNDS)
def test_learning_rates_rise_stay_and_fall(which):
    scales = np.array([which.rate_scale(step) for step in range(which.steps)])
    top = int(scales.argmax())
    assert scales[0] < 0.01
    assert scales[top] == which.rate
    assert 0 < scales[-1] <= 0.01 * which.rate
    assert np.all(np.diff(scales[top:]) <= 0)


@pytest.mark.parametrize("which", schedule.ROUNDS)
def test_the_stages_end_with_the_round_and_fill_their_batches(which):
    assert [stage.until for stage in which.stages] == sorted(stage.until for stage in which.stages)
    assert which.stage(0) == which.stages[0]
    assert which.stage(which.steps - 1) == which.stages[-1]
    assert all(schedule.BATCH_FRAMES // frames // 2 >= 1 for stage in which.stages for frames in stage.frames)


def test_each_part_of_the_training_is_heard_in_one_round():
    for part in generate.PARTS:
        hearing = [w.name for w in schedule.ROUNDS if fnmatch(part.name, f"{part.engine}-{w.parts}")]
        assert len(hearing) == (not part.name.startswith("watch-")), part.name


def test_packing_keeps_the_contents_and_is_repeatable(tmp_path):
    network().export(tmp_path / "small.pt")
    digests = {pack(tmp_path / "small.pt", tmp_path / f"{random.random()}.pt") for _ in range(2)}
    packed = next(path for path in tmp_path.iterdir() if path.name != "small.pt")
    assert len(digests) == 1
    assert packed.stat().st_size < 0.2 * (tmp_path / "small.pt").stat().st_size
    assert {entry.compress_type for entry in zipfile.ZipFile(packed).infolist()} == {zipfile.ZIP_DEFLATED}
    loose = torch.load(tmp_path / "small.pt", weights_only=True)
    read = torch.load(packed, weights_only=True)
    assert read["dims"] == loose["dims"]
    assert all(torch.equal(value, read["model_state_dict"][name]) for name, value in loose["model_state_dict"].items())
