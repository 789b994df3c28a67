"""Noise, level and speed of heard speech: measured against what was asked for, and the same whatever the order."""

import concurrent.futures
import json
import pickle

import numpy as np
import pytest
import soundfile

from ar_omni_jax.documents import Document, DocumentError, Part, Role, Turn
from ar_omni_jax.tokenizers.bundle import BUILT_IN, Tokenizers
from ar_omni_jax.tokenizers.speech.audio import AudioError
from ar_omni_jax.tokenizers.text import TextTokenizer
from ar_omni_jax.vocabulary import Modality, compact_vocabulary
from data_pipelines import build_shards
from data_pipelines.augment import (
    Augmenter,
    AugmentOptions,
    Change,
    Noise,
    list_noises,
    parse_augmenter,
    stretch,
)
from data_pipelines.media import MediaEncoder, codecs_of
from data_pipelines.shard_builder import BuildError
from data_pipelines.shards import read_documents

RATE, HOP = 16000, 400


def rms_db(wave):
    return 10 * np.log10(np.mean(np.square(wave, dtype=np.float64)))


def tone(seconds=1.0, pitch=220.0, level=0.1):
    return (level * np.sin(2 * np.pi * pitch * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.fixture(scope="module")
def demand(tmp_path_factory):
    """Two environments of two channels, 48 kHz, 3 s, as DEMAND lays them out."""
    root = tmp_path_factory.mktemp("demand")
    rng = np.random.default_rng(0)
    for environment in ("DKITCHEN", "TBUS"):
        for channel in ("ch01", "ch02"):
            path = root / environment / f"{channel}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, rng.normal(0, 0.05, 3 * 48000), 48000)
    (root / "README.txt").write_text("no sound")
    return root


def noisy(folder, **options):
    return Augmenter(AugmentOptions(str(folder), **{"noise_probability": 1.0} | options))


# -- noise ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("asked", [(-5.0, -5.0), (0.0, 0.0), (5.0, 20.0)])
def test_the_ratio_of_speech_to_noise_is_the_one_drawn(demand, asked):
    augmenter, wave = noisy(demand, noise_snr=asked), tone(0.7)
    drawn = []
    for number in range(20):
        change = augmenter.change(f"d{number}", 0)
        noise = change(wave, RATE).astype(np.float64) - wave
        assert rms_db(wave) - rms_db(noise) == pytest.approx(change.snr_db, abs=0.01)
        assert asked[0] <= change.snr_db <= asked[1]
        drawn.append(change.snr_db)
    if asked[0] < asked[1]:
        assert max(drawn) - min(drawn) > 9 and abs(np.mean(drawn) - 12.5) < 3


def test_the_ratio_holds_after_speed_and_level_too(demand):
    options = {"noise_snr": (10.0, 10.0), "speed": (0.9, 0.9), "gain_db": (-6.0, -6.0)}
    change, wave = noisy(demand, **options).change("d", 0), tone(1.0)
    clean = Change(change.speed, (), 0.0, change.gain_db)(wave, RATE)
    assert len(clean) == round(RATE / 0.9) and rms_db(clean) == pytest.approx(rms_db(wave) - 6, abs=0.1)
    assert rms_db(clean) - rms_db(change(wave, RATE) - clean) == pytest.approx(10, abs=0.01)


def test_noise_comes_in_the_share_asked_for_and_from_every_file_and_place(demand):
    augmenter = noisy(demand, noise_probability=0.25)
    changes = [augmenter.change(f"d{number}", 0) for number in range(4000)]
    with_noise = [change for change in changes if change is not None]
    assert abs(len(with_noise) / 4000 - 0.25) < 0.03
    used = [change.noise[0] for change in with_noise]
    counts = {path: sum(file.path == path for file, _ in used) for path in {file.path for file, _ in used}}
    assert len(counts) == 4 and min(counts.values()) > 200
    assert min(place for _, place in used) < 0.01 and max(place for _, place in used) > 0.99


def test_the_place_says_which_stretch_of_the_file_is_heard(demand, tmp_path):
    samples = np.random.default_rng(2).normal(0, 0.1, 3 * RATE).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    noise = list_noises(tmp_path)[0][0]
    for place, start in ((0.0, 0), (0.5, RATE), (0.9999999, 2 * RATE - 1)):
        assert np.array_equal(stretch(noise, place, RATE, RATE), samples[start : start + RATE])
    resampled = list_noises(demand)[0][0]
    part = stretch(resampled, 0.5, RATE, RATE)
    assert len(part) == RATE and rms_db(part) == pytest.approx(rms_db(stretch(resampled, 0.1, RATE, RATE)), abs=0.5)


def test_noise_shorter_than_the_speech_is_repeated(demand, tmp_path):
    samples = np.random.default_rng(1).normal(0, 0.1, RATE // 4).astype(np.float32)
    soundfile.write(tmp_path / "short.wav", samples, RATE, subtype="FLOAT")
    noise = list_noises(tmp_path)[0][0]
    long = stretch(noise, 0.5, RATE, RATE)
    assert np.array_equal(long[: RATE // 8], samples[RATE // 8 :]) and np.array_equal(
        long[RATE // 4 :], long[: -RATE // 4]
    )
    change, wave = noisy(tmp_path, noise_snr=(3.0, 3.0)).change("d", 0), tone(2.0)
    assert rms_db(wave) - rms_db(change(wave, RATE) - wave) == pytest.approx(3, abs=0.01)
    for count in (len(samples) - 1, len(samples), len(samples) + 1, 1):
        assert len(stretch(noise, 0.9999, count, RATE)) == count


def test_silent_stretches_are_passed_over_and_silent_noise_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    change = noisy(tmp_path).change("d", 0)
    with pytest.raises(AudioError, match="noise is silent wherever it was tried .*a.wav"):
        change(tone(), RATE)
    silent = Noise(str(tmp_path / "a.wav"), RATE, RATE)
    soundfile.write(tmp_path / "b.wav", np.random.default_rng(0).normal(0, 0.1, 2 * RATE), RATE)
    loud = Noise(str(tmp_path / "b.wav"), 2 * RATE, RATE)
    wave = tone(0.5)
    mixed = Change(noise=((silent, 0.1), (loud, 0.2)), snr_db=6.0)(wave, RATE)
    assert rms_db(wave) - rms_db(mixed - wave) == pytest.approx(6, abs=0.01)


def test_silence_gets_no_noise_and_a_single_sample_survives(demand):
    change = noisy(demand, speed=(1.1, 1.1), gain_db=(3.0, 3.0)).change("d", 0)
    assert not change(np.zeros(1000, np.float32), RATE).any()
    for count in (1, 2, 5):
        out = change(np.full(count, 0.1, np.float32), RATE)
        assert out.size and np.isfinite(out).all() and out.dtype == np.float32


def test_a_folder_that_cannot_serve_is_refused(tmp_path):
    with pytest.raises(DocumentError, match="has no sounds"):
        noisy(tmp_path)
    with pytest.raises(DocumentError, match="has no sounds"):
        noisy(tmp_path / "none")
    soundfile.write(tmp_path / "click.wav", np.ones(10), RATE)
    soundfile.write(tmp_path / "good.wav", np.ones(RATE), RATE)
    (tmp_path / "text.flac").write_text("no sound")
    (tmp_path / "half.wav").write_bytes((tmp_path / "good.wav").read_bytes()[:9000])
    with pytest.raises(DocumentError, match="3 of 4 .*click.wav has 0.000625 s.*half.wav.*cut short.*text.flac"):
        noisy(tmp_path)


# -- level and speed -------------------------------------------------------------------------------------------
def test_level_and_speed_are_within_their_ranges():
    augmenter = Augmenter(AugmentOptions(gain_db=(-6.0, 3.0), speed=(0.9, 1.1)))
    changes = [augmenter.change(f"d{number}", 0) for number in range(500)]
    for values, low, high in (([c.gain_db for c in changes], -6, 3), ([c.speed for c in changes], 0.9, 1.1)):
        assert low <= min(values) < low + 0.1 and high - 0.1 < max(values) <= high
    assert abs(np.corrcoef([c.gain_db for c in changes], [c.speed for c in changes])[0, 1]) < 0.15


def test_faster_is_shorter_and_higher_and_gain_is_in_decibels():
    wave = tone(1.0, 500)
    fast = Change(speed=1.1)(wave, RATE)
    assert len(fast) == pytest.approx(RATE / 1.1, abs=1)
    peak = np.argmax(np.abs(np.fft.rfft(fast * np.hanning(len(fast))))) * RATE / len(fast)
    assert peak == pytest.approx(550, abs=2)
    assert rms_db(Change(gain_db=-6.0)(wave, RATE)) == pytest.approx(rms_db(wave) - 6, abs=1e-3)


def test_nothing_is_clipped(demand):
    loud = tone(level=0.9)
    out = Change(gain_db=12.0)(loud, RATE)
    assert np.abs(out).max() <= 1 and np.allclose(out / out.max(), loud / loud.max(), atol=1e-6)
    assert np.abs(noisy(demand, noise_snr=(-20.0, -20.0)).change("d", 0)(loud, RATE)).max() <= 1


# -- determinism -----------------------------------------------------------------------------------------------
def test_a_change_is_a_function_of_seed_document_and_utterance(demand):
    def draw(seed=0, document="d1", number=0, **options):
        return noisy(demand, seed=seed, **options).change(document, number)

    assert draw() == draw() and len({draw(), draw(1), draw(document="d2"), draw(number=1)}) == 4
    other = draw(gain_db=(-6.0, 3.0))  # what else is asked for changes no lot
    assert (other.noise, other.snr_db) == (draw().noise, draw().snr_db) and other.gain_db != 0
    assert draw(document="\udc00") is not None
    change = draw()
    copy = pickle.loads(pickle.dumps(change))
    assert np.array_equal(copy(tone(), RATE), change(tone(), RATE))


def test_the_record_follows_what_decides_the_sound(demand, tmp_path):
    record = noisy(demand).record
    assert json.loads(json.dumps(record)) == record
    for other in (noisy(demand, noise_snr=(1.0, 2.0)), noisy(demand, seed=1), noisy(demand, speed=(1.0, 1.1))):
        assert other.record != record
    soundfile.write(tmp_path / "a.wav", tone(), RATE)
    assert noisy(tmp_path).record["noise"] != record["noise"]
    assert Augmenter(AugmentOptions(gain_db=(0.0, 1.0))).record == {"seed": 0, "gain_db": [0.0, 1.0]}
    assert Augmenter(AugmentOptions(gain_db=(0.0, 0.0), speed=(1.0, 1.0))).change("d", 0) is None


# -- in a build ------------------------------------------------------------------------------------------------
class LoudnessCodec:
    """4096 codes by the loudness of each frame: any change of the sound shows."""

    sample_rate, hop_length, codebook_size = RATE, HOP, 4096

    def encode_batch(self, waves):
        padded = [np.pad(w, (0, -len(w) % HOP)).reshape(-1, HOP) for w in waves]
        return [np.clip(np.sqrt(np.square(w).mean(1)) * 4096, 0, 4095).astype(np.int32) for w in padded]


def make_tokenizers():
    text = TextTokenizer.load(BUILT_IN["toyworld"] / "text.model")
    vocabulary = compact_vocabulary(text.size, 16, 4096, (2, 2), name="loudness")
    return Tokenizers(
        vocabulary,
        {"text": text.identity, "image": "i", "speech": "s"},
        {"text": lambda: text, "speech": LoudnessCodec},
    )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Per utterance: asr twice under two names, tts, and a dialogue that is heard and answered by it."""
    root = tmp_path_factory.mktemp("corpus")
    lines = []
    for i in range(4):
        soundfile.write(root / f"{i}.wav", tone(0.3 + 0.05 * i, 200 + 20 * i), RATE)
        sound, text = {"speech": f"{i}.wav"}, {"text": f"utterance {i}"}
        turns = {
            "asr": [[sound], [text]],
            "again": [[sound], [text]],
            "tts": [[text], [sound]],
            "chat": [[sound], [sound]],
        }
        for name, turn in turns.items():
            task = {"again": "asr", "chat": "chat_speech"}.get(name, name)
            lines.append(json.dumps({"id": f"{name}{i}", "task": task, "turns": turn}))
    (root / "train.jsonl").write_text("\n".join(lines) + "\n")
    return root / "train.jsonl"


def build(manifest, output, augmenter=None, **options):
    options = {"records_per_shard": 5, "quiet": True} | options
    build_shards.build("manifest", manifest, output, make_tokenizers(), augmenter=augmenter, **options)
    return {d.id: d for d in read_documents(output, "train")}


def codes(document, role):
    """The speech codes of one role."""
    vocabulary = make_tokenizers().vocabulary
    spans = [s for s in document.spans if s.modality == Modality.SPEECH and s.role == role]
    return [vocabulary.to_codes(Modality.SPEECH, document.tokens[s.start : s.end]).tolist() for s in spans]


def files(directory):
    return {p.name: p.read_bytes() for p in directory.rglob("*") if p.is_file() and p.name != "lock"}


def test_only_heard_speech_is_altered(manifest, demand, tmp_path):
    clean = build(manifest, tmp_path / "clean")
    altered = build(manifest, tmp_path / "noisy", noisy(demand, speed=(0.9, 0.95)))
    for i in range(4):
        (heard,), (again,), (was,) = (
            codes(documents[f"{name}{i}"], Role.PROMPT)
            for documents, name in ((altered, "asr"), (altered, "again"), (clean, "asr"))
        )
        assert heard != was and again not in (heard, was)
        assert codes(altered[f"tts{i}"], Role.RESPONSE) == codes(clean[f"tts{i}"], Role.RESPONSE) == [was]
        assert codes(altered[f"chat{i}"], Role.RESPONSE) == [was]
        assert codes(altered[f"chat{i}"], Role.PROMPT) not in ([was], [heard])


def test_codes_are_those_of_the_changed_sound(manifest, demand, tmp_path):
    augmenter = noisy(demand, noise_snr=(0.0, 10.0), gain_db=(-6.0, 3.0))
    altered = build(manifest, tmp_path, augmenter)
    for i in range(4):
        wave = soundfile.read(manifest.parent / f"{i}.wav", dtype="float32")[0]
        wanted = LoudnessCodec().encode_batch([augmenter.change(f"chat{i}", 0)(wave, RATE)])
        assert codes(altered[f"chat{i}"], Role.PROMPT) == [wanted[0].tolist()]


def test_workers_threads_and_windows_change_no_byte(manifest, demand, tmp_path, monkeypatch):
    augmenter = noisy(demand, speed=(0.9, 1.1))
    build(manifest, tmp_path / "one", augmenter)
    for worker in (1, 0):
        build_shards.build(
            "manifest",
            manifest,
            tmp_path / "two",
            make_tokenizers(),
            augmenter=noisy(demand, speed=(0.9, 1.1)),
            records_per_shard=5,
            quiet=True,
            worker_index=worker,
            worker_count=2,
            threads=1,
        )
    monkeypatch.setattr("data_pipelines.media.WINDOW_DOCUMENTS", 2)
    build(manifest, tmp_path / "three", augmenter, threads=3)
    assert files(tmp_path / "one") == files(tmp_path / "two") == files(tmp_path / "three")
    other = build(manifest, tmp_path / "four", augmenter, records_per_shard=16)
    one = {d.id: d for d in read_documents(tmp_path / "one", "train")}
    assert all(np.array_equal(one[id].tokens, other[id].tokens) for id in one)


def test_other_settings_are_refused_over_old_shards(manifest, demand, tmp_path):
    build(manifest, tmp_path / "a", noisy(demand))
    for other in (None, noisy(demand, seed=1), noisy(demand, gain_db=(0.0, 1.0))):
        with pytest.raises(BuildError, match="augment was .* and is"):
            build(manifest, tmp_path / "a", other)
    build(manifest, tmp_path / "b")
    with pytest.raises(BuildError, match="augment was None and is {.*noise_probability"):
        build(manifest, tmp_path / "b", noisy(demand))
    info = json.loads((tmp_path / "a" / "dataset.json").read_text())
    assert info["splits"]["train"]["build"]["augment"] == noisy(demand).record


def test_noise_that_vanishes_or_is_silent_is_told_with_the_record(manifest, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    silent = noisy(tmp_path)
    with pytest.raises(BuildError, match="train.jsonl: line 1: document 'asr0': .*0.wav: noise is silent"):
        build(manifest, tmp_path / "out", silent)
    (tmp_path / "a.wav").unlink()
    with pytest.raises(BuildError, match="a.wav: does not exist"):
        build(manifest, tmp_path / "out", silent)


def test_the_same_sound_is_decoded_once_where_it_stays_clean(manifest):
    """tts and unaltered asr share codes; pictures and text know nothing of it."""
    augmenter = Augmenter(AugmentOptions(gain_db=(0.0, 0.0)))
    sound = Part(Modality.SPEECH, str(manifest.parent / "0.wav"))
    document = Document("d", "asr", "speech", (Turn("user", (sound,)), Turn("assistant", (sound,))))
    calls = []
    tokenizers = make_tokenizers()
    encode = tokenizers.speech.encode_batch
    tokenizers.speech.encode_batch = lambda waves: calls.append(len(waves)) or encode(waves)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        list(MediaEncoder(codecs_of(tokenizers), pool, augmenter).windows([document]))
    assert calls == [1]


# -- command line ------------------------------------------------------------------------------------------------
FLAGS = {"noise": "", "noise_snr": "", "noise_probability": None, "gain_db": "", "speed": "", "augment_seed": 0}


def test_flags_become_options(demand):
    assert parse_augmenter(FLAGS) is None and parse_augmenter(FLAGS | {"augment_seed": 3}) is None
    given = {"noise": str(demand), "noise_snr": "-5,5", "noise_probability": 0.0, "gain_db": "-6,3", "augment_seed": 3}
    options = parse_augmenter(FLAGS | given).options
    assert options == AugmentOptions(str(demand), (-5.0, 5.0), 0.0, (-6.0, 3.0), None, 3)
    assert parse_augmenter(FLAGS | {"noise": str(demand)}).options == AugmentOptions(str(demand))


BAD_FLAGS = {
    "noise_snr says": {"noise_snr": "5,20"},
    "noise_snr and noise_probability say": {"noise_probability": 0.2},
    "speed: '1.1' must be two numbers, as --speed=0.9,1.1": {"speed": "1.1"},
    "gain_db: 'a,b' must be two numbers": {"gain_db": "a,b"},
    "speed: 0,2 is no range": {"speed": "0,2"},
    "gain_db: 3,-6 is no range": {"gain_db": "3,-6"},
    "gain_db: nan,1 is no range": {"gain_db": "nan,1"},
    "noise_probability 1.5 must lie": {"noise": ".", "noise_probability": 1.5},
}


@pytest.mark.parametrize("message", sorted(BAD_FLAGS))
def test_bad_flags_are_named(message):
    with pytest.raises(DocumentError, match=message.replace("noise_snr says", "name its directory by --noise")):
        parse_augmenter(FLAGS | BAD_FLAGS[message])


def test_the_command_takes_the_flags(manifest, demand, tmp_path, monkeypatch):
    monkeypatch.setattr(build_shards, "load_tokenizers", lambda name: make_tokenizers())
    flags = [f"--noise={demand}", "--noise_probability=1", "--speed=0.9,1.1", "--gain_db=-6,3", "--augment_seed=4"]
    build_shards.main([f"--input={manifest}", f"--output={tmp_path}", *flags])
    record = json.loads((tmp_path / "dataset.json").read_text())["splits"]["train"]["build"]["augment"]
    assert record == noisy(demand, speed=(0.9, 1.1), gain_db=(-6.0, 3.0), seed=4).record
    with pytest.raises(SystemExit, match="build_shards: speed: 3,4 is no range"):
        build_shards.main([f"--input={manifest}", f"--output={tmp_path}", "--speed=3,4"])
