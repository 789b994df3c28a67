"""What is decoded ahead is bounded by the length that media have, not by one that is guessed."""

import concurrent.futures

import numpy as np
import pytest
import soundfile

from ar_omni_jax.documents import Document, Part, Turn
from ar_omni_jax.vocabulary import Modality
from data_pipelines.media import WINDOW_BYTES, WINDOW_DOCUMENTS, Codecs, MediaEncoder
from data_pipelines.sound import SoundSegment

RATE = 24000


def windows(values, modality=Modality.SPEECH):
    """Documents in each window."""
    codecs = Codecs(lambda: 64, None, lambda: RATE, lambda waves: [np.zeros(1, np.int32) for _ in waves])
    documents = [Document(str(n), "asr", "speech", (Turn("user", (Part(modality, v),)),)) for n, v in enumerate(values)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        found = list(MediaEncoder(codecs, pool).windows(documents))
    return [len(window) for window in found]


@pytest.fixture(scope="module")
def long_sound(tmp_path_factory):
    """Five minutes, in a rate of its own."""
    path = tmp_path_factory.mktemp("long") / "a.flac"
    samples = np.random.default_rng(0).integers(-99, 99, 300 * 8000).astype(np.int16)
    soundfile.write(path, samples, 8000)
    return path


def full(seconds):
    """Documents of so many seconds that fill a window."""
    return -(-WINDOW_BYTES // (4 * RATE * seconds))


def test_long_segments_fill_a_window_sooner():
    """Their listing tells the length; the files, which are not there, are not asked."""
    many = full(600)
    found = windows([SoundSegment(f"{n}.flac", 0.0, 600.0) for n in range(2 * many + 1)])
    assert found == [many, many, 1] and many < WINDOW_DOCUMENTS / 50


@pytest.mark.parametrize("kind", ["path", "bytes"])
def test_long_files_fill_a_window_by_their_header(long_sound, kind):
    if kind == "path":
        assert windows([str(long_sound)] * (full(300) + 1)) == [full(300), 1]
        return
    data = long_sound.read_bytes()
    many = -(-WINDOW_BYTES // (4 * RATE * 300 + len(data)))  # the bytes are in memory too
    assert windows([data] * (many + 1)) == [many, 1]


def test_arrays_count_as_they_are_and_as_they_will_be():
    value = np.zeros(120 * RATE, np.float32)
    many = -(-WINDOW_BYTES // (2 * value.nbytes))
    assert windows([value] * (many + 1)) == [many, 1]


def test_what_tells_no_length_counts_as_an_ordinary_utterance(tmp_path):
    (tmp_path / "no.flac").write_bytes(b"x" * 100_000)
    values = [SoundSegment("a", 0.0, float("nan")), SoundSegment("a", 5.0, 1.0), str(tmp_path / "no.flac"), "gone.wav"]
    many = full(15)
    assert windows((values * many)[: many + 1]) == [many, 1]
