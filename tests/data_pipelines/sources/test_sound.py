"""Segments of long sounds are exact in every codec, and sounds that were cut short are found out."""

import numpy as np
import pytest
import soundfile
import speech_trees as trees

from ar_omni_jax.tokenizers.speech.audio import AudioError
from data_pipelines.sound import END_TOLERANCE, SoundSegment, read_sound, seconds_of
from data_pipelines.whole_sound import check_whole

RATE = 48000


@pytest.fixture(scope="module")
def long_sounds(tmp_path_factory):
    root = tmp_path_factory.mktemp("long")
    return {suffix: trees.write_sound(root / f"a{suffix}", trees.wave(1, 12, RATE), RATE) for suffix in trees.FORMATS}


@pytest.mark.parametrize("suffix", sorted(trees.FORMATS))
@pytest.mark.parametrize("begin,end", [(0.0, 0.5), (5.1234, 5.9), (11.2, 12.0)])
def test_a_segment_is_what_decoding_the_whole_gives_there(long_sounds, suffix, begin, end):
    whole, _ = soundfile.read(long_sounds[suffix], dtype="float32")
    cut = read_sound(SoundSegment(str(long_sounds[suffix]), begin, end), RATE)
    wanted = whole[round(begin * RATE) : round(end * RATE)]
    assert cut.shape == wanted.shape and np.abs(cut - wanted).max() < 1e-4


@pytest.mark.parametrize("suffix", sorted(trees.FORMATS))
def test_the_length_is_known_before_decoding(long_sounds, suffix):
    path = long_sounds[suffix]
    for value in (str(path), path.read_bytes(), read_sound(str(path), RATE)):
        assert seconds_of(value, RATE) == pytest.approx(12, abs=0.1)
    assert seconds_of(SoundSegment(str(path), 1.5, 4), RATE) == 2.5
    assert seconds_of(str(path.parent / "none"), RATE) == seconds_of(b"x" * 99_999, RATE) == 0


def test_a_segment_is_resampled_and_may_end_a_little_late(long_sounds):
    path = str(long_sounds[".flac"])
    assert read_sound(SoundSegment(path, 1, 2), 16000).shape == (16000,)
    assert len(read_sound(SoundSegment(path, 11, 12 + END_TOLERANCE), RATE)) == RATE
    for begin, end in ((11, 12.1 + END_TOLERANCE), (12.2, 12.4)):
        with pytest.raises(AudioError, match="a.flac.*has only 12 s"):
            read_sound(SoundSegment(path, begin, end), RATE)


@pytest.mark.parametrize("begin,end", [(2, 2), (3, 1), (-1, 1), (float("nan"), 1), (0, float("inf"))])
def test_times_that_are_none_are_refused(long_sounds, begin, end):
    with pytest.raises(AudioError, match="must begin at 0 s or later"):
        read_sound(SoundSegment(str(long_sounds[".wav"]), begin, end), RATE)


@pytest.mark.parametrize("suffix", sorted(trees.FORMATS))
def test_segments_of_a_damaged_file_are_refused(long_sounds, tmp_path, suffix):
    data = long_sounds[suffix].read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(AudioError, match=f"cut{suffix}"):
        read_sound(SoundSegment(str(path), 11, 12), RATE)
    with pytest.raises(AudioError, match="none.wav: does not exist"):
        read_sound(SoundSegment(str(tmp_path / "none.wav"), 0, 1), RATE)


# -- whole files ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", sorted(trees.FORMATS))
def test_a_sound_that_was_cut_short_is_refused_as_a_file_and_as_bytes(long_sounds, tmp_path, suffix):
    data = long_sounds[suffix].read_bytes()
    assert np.array_equal(read_sound(data, RATE), read_sound(str(long_sounds[suffix]), RATE))
    for share in (0.97, 0.5):
        cut = data[: int(len(data) * share)]
        (tmp_path / f"cut{suffix}").write_bytes(cut)
        for source in (cut, str(tmp_path / f"cut{suffix}")):
            with pytest.raises(AudioError, match="cut short|cannot be decoded|no samples"):
                read_sound(source, RATE)


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
@pytest.mark.parametrize("rate,channels", [(8000, 1), (22050, 2), (44100, 1), (48000, 2)])
def test_every_kind_of_mp3_is_found_whole(tmp_path, rate, channels, mode):
    path = tmp_path / "a.mp3"
    samples = np.stack([trees.wave(2, 3, rate)] * channels, 1)
    soundfile.write(path, samples, rate, format="MP3", bitrate_mode=mode, compression_level=0.4)
    tagged = b"ID3\x04\0\0\0\0\2\0" + b"\0" * 256 + path.read_bytes()
    for data in (path.read_bytes(), tagged, tagged + b"TAG" + b"\0" * 125):
        check_whole(data)
        with pytest.raises(AudioError, match="cut short"):
            check_whole(data[: int(len(data) * 0.9)])


def test_files_without_a_size_pass():
    streamed = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0" + b"\0" * 16 + b"data\xff\xff\xff\xff" + b"\0" * 100
    for data in (streamed, b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b"\xff\xfb\x90\0" + b"\0" * 5000, b"any text"):
        check_whole(data)
    odd = b"RIFF\0\0\0\0WAVELIST\x03\0\0\0abc\0data\x04\0\0\0\1\2\3\4"
    check_whole(odd)
    with pytest.raises(AudioError, match="has 35 bytes of 36"):
        check_whole(odd[:-1])
