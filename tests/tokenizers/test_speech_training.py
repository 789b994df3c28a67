"""Training on a small folder of sounds: the loss falls, the codebook is kept alive, what is exported loads."""

import json

import jax
import ml_collections
import numpy as np
import pytest
import soundfile

from ar_omni_jax.tokenizers.speech import SpeechTokenizer, upkeep
from ar_omni_jax.tokenizers.speech.data import Crops, speech_paths
from ar_omni_jax.tokenizers.speech.losses import frame, magnitudes, mel_distance, mel_filterbank, spectral_losses
from ar_omni_jax.tokenizers.speech.training import create_task

RATE = 2000
MODEL = {
    "encoder": {"n_filters": 4, "dimension": 8, "ratios": (4, 5), "lstm_layers": 1, "lookahead": 10, "normalize": True},
    "backbone": {
        "dim": 24,
        "intermediate_dim": 32,
        "num_layers": 1,
        "adanorm_num_embeddings": 1,
        "position_net": False,
        "upsample": 2,
        "upsampled_dim": 16,
        "upsampled_intermediate_dim": 24,
        "upsampled_layers": 1,
    },
    "head": {"n_fft": 20, "hop_length": 10, "source_filter": True},
    "codebook_size": 16,
    "sample_rate": RATE,
    "causal": True,
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Tones of falling and rising pitch, named by manifests as the toy world's are."""
    root = tmp_path_factory.mktemp("sounds")
    (root / "speech").mkdir()
    for split, count in (("train", 6), ("test", 2)):
        lines = []
        for i in range(count):
            time = np.arange(RATE * (2 + i % 2)) / RATE
            tone = 0.3 * np.sin(2 * np.pi * (100 + 60 * i) * time * (1 + 0.1 * time))
            soundfile.write(root / "speech" / f"{split}{i}.wav", tone, RATE)
            part = {"speech": f"speech/{split}{i}.wav"}
            lines.append(json.dumps({"turns": [{"role": "user", "parts": [part, {"text": "x"}]}]}))
        (root / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def config(data_dir):
    return ml_collections.ConfigDict(
        {
            "data_dir": str(data_dir),
            "seed": 0,
            "steps": 24,
            "batch_size": 4,
            "crop_samples": 2000,
            "learning_rate": 5e-3,
            "warmup_steps": 2,
            "decay": 0.2,
            "clip_norm": 1.0,
            "eval_utterances": 1,
            "model": MODEL,
            "stft_weight": 0.5,
            "pitch_weight": 0.5,
            "commitment_weight": 0.25,
            "codebook_decay": 0.9,
            "quantize_start": 12,
            "recent_batches": 4,
            "revive_every": 4,
            "revive_until": 0.9,
            "dead_below": 0.05,
        }
    )


def run(task, first, last, state):
    losses = []
    for step, batch in zip(range(first, last), task.batches(first, 0), strict=False):
        state, metrics = task.train_step(state, batch, step)
        state = task.after_step(state, step + 1, 0)
        losses.append(float(metrics["loss"]))
    return state, losses


def test_loss_falls_resume_is_exact_and_export_loads(config, tmp_path):
    task = create_task(config)
    state, losses = run(task, 0, 10, task.init(0))
    saved = jax.tree.map(np.asarray, state)
    state, later = run(task, 10, 24, state)
    assert np.mean(later[-3:]) < 0.8 * losses[0]
    again, repeated = run(task, 10, 24, jax.tree.map(jax.numpy.asarray, saved))
    assert repeated == later

    metrics, samples = task.evaluate(state)
    assert 0 < metrics["codes_used"] <= 1 and metrics["mel"] > 0
    assert set(samples) >= {"0_original.wav", "0_decoded.wav"}
    task.export(state, str(tmp_path / "speech"), {"step": 24})
    tokenizer = SpeechTokenizer.load(tmp_path / "speech")
    data = {"training_utterances": 6, "training_hours": 0.0}
    assert tokenizer.record["provenance"] == {"step": 24, "data": data}
    wav = task.held_out[0]
    assert np.mean(tokenizer.encode(wav) == task.tokenizer(state).encode(wav)) > 0.9  # float16 on disk

    text = (tmp_path / "speech.json").read_text()
    (tmp_path / "speech.json").write_text(text.replace('"codebook_size": 16', '"codebook_size": 17'))
    with pytest.raises(ValueError, match="do not match the identity"):
        SpeechTokenizer.load(tmp_path / "speech")


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.json"):
        SpeechTokenizer.load(tmp_path / "nothing")


def test_batches_are_a_function_of_seed_and_step(data_dir):
    crops = Crops(speech_paths(data_dir, "train"), RATE, 1000, 3)
    from_start, resumed = crops.batches(0, 7), crops.batches(2, 7)
    third = [next(from_start) for _ in range(3)][2]
    np.testing.assert_array_equal(third, next(resumed))
    assert not np.array_equal(third, crops.batch(8, 2)) and third.shape == (3, 1000)


def test_utterance_shorter_than_a_crop_is_kept_whole(data_dir):
    crops = Crops(speech_paths(data_dir, "test")[:1], RATE, 5000, 1)
    batch = crops.batch(0, 0)[0]
    assert np.count_nonzero(batch) == np.count_nonzero(crops.samples)


def test_bad_training_data_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="train.jsonl"):
        speech_paths(tmp_path, "train")
    (tmp_path / "train.jsonl").write_text('{"turns": []}\n')
    with pytest.raises(ValueError, match="no record has a speech part"):
        speech_paths(tmp_path, "train")
    (tmp_path / "train.jsonl").write_text('{"turns": []}\n{"turn": []}\n')
    with pytest.raises(ValueError, match="train.jsonl:2"):
        speech_paths(tmp_path, "train")
    with pytest.raises(ValueError, match="gone.wav"):
        Crops([tmp_path / "gone.wav"], RATE, 100, 1)


def test_crop_that_is_no_whole_number_of_codes_is_refused(config):
    config.crop_samples = 1999
    with pytest.raises(ValueError, match="multiple of the codec's hop"):
        create_task(config)


def test_kmeans_finds_separate_clusters():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 3)) * 20
    points = (centres[rng.integers(4, size=400)] + rng.normal(size=(400, 3))).reshape(4, 100, 3)
    counts, found = upkeep.kmeans(points.astype(np.float32), 12, seed=0)
    distance = np.linalg.norm(points.reshape(-1, 1, 3) - found, axis=-1).min(axis=1)
    assert distance.mean() < 1.5 and counts.sum() == pytest.approx(100, abs=5)


def test_moving_average_follows_the_vectors_and_waits_until_active():
    embed = np.zeros((3, 2), np.float32)
    statistics = {"counts": np.ones(3, np.float32), "sums": embed}
    vectors, codes = np.full((4, 2), 2.0, np.float32), np.array([0, 0, 1, 1])
    same, kept = upkeep.moving_average(statistics, embed, vectors, codes, 0.5, False)
    np.testing.assert_array_equal(kept, embed)
    np.testing.assert_array_equal(same["counts"], np.ones(3))
    new, moved = upkeep.moving_average(statistics, embed, vectors, codes, 0.5, True)
    np.testing.assert_allclose(new["counts"], [1.5, 1.5, 0.5])
    np.testing.assert_allclose(moved, [[4 / 3] * 2, [4 / 3] * 2, [0, 0]], rtol=1e-6)


def test_dead_codes_move_onto_recent_vectors_and_others_stay():
    embed = np.arange(8, dtype=np.float32).reshape(4, 2)
    recent = np.full((2, 5, 2), 9.0, np.float32)
    counts, moved = upkeep.revive(np.array([1.0, 1e-4, 1.0, 2.0]), embed, recent, 0.05, np.random.default_rng(0))
    np.testing.assert_array_equal(moved, [[0, 1], [9, 9], [4, 5], [6, 7]])
    assert counts[1] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("n_fft,hop", [(256, 64), (512, 128)])
def test_magnitudes_are_those_of_numpy(n_fft, hop):
    wav = np.random.default_rng(0).normal(size=(2, 2048)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(wav, n_fft, axis=1)[:, ::hop]
    np.testing.assert_array_equal(frame(wav, n_fft, hop), windows)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    expected = np.abs(np.fft.rfft(windows * hann / hann.sum()))
    np.testing.assert_allclose(magnitudes(wav, n_fft, hop), expected, atol=1e-4)


def test_mel_bands_average_and_cover():
    bank = mel_filterbank(257, 80, 16000)
    np.testing.assert_allclose(bank.sum(axis=0), 1.0, rtol=1e-5)
    assert (bank[1:-1].sum(axis=1) > 0).all()


def test_losses_ignore_phase_and_see_spectra():
    time = np.arange(8000) / 16000
    sine, shifted, other = (
        np.sin(2 * np.pi * f * time + p)[None].astype(np.float32) * 0.3 for f, p in ((1000, 0), (1000, 2), (1500, 0))
    )
    assert float(mel_distance(sine, sine, 16000)) == 0
    assert float(mel_distance(shifted, sine, 16000)) < 0.1 < 0.3 < float(mel_distance(other, sine, 16000))
    assert float(spectral_losses(other, sine, 16000)["stft"]) > 0.1
