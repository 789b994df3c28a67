"""Reading sound: what is right is read, what is wrong is explained."""

import io

import numpy as np
import pytest
import soundfile

from ar_omni_jax.tokenizers.speech import AudioError, read_audio


def wav_bytes(samples, rate, subtype="PCM_16"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype, format="WAV")
    return file.getvalue()


def tone(rate, seconds=0.5, frequency=440.0):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def test_path_and_bytes_agree(tmp_path):
    data = wav_bytes(tone(16000), 16000)
    (tmp_path / "a.wav").write_bytes(data)
    from_path, from_bytes = read_audio(tmp_path / "a.wav", 16000), read_audio(data, 16000)
    np.testing.assert_array_equal(from_path, from_bytes)
    np.testing.assert_allclose(from_path, tone(16000), atol=1e-4)  # levels are kept
    assert from_path.dtype == np.float32


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_resampling(rate):
    out = read_audio(wav_bytes(tone(rate), rate), 16000)
    assert abs(len(out) - 8000) <= 1
    np.testing.assert_allclose(out[1000:7000], tone(16000)[1000:7000], atol=0.01)


def test_channels_are_averaged():
    stereo = np.stack([tone(16000), np.zeros(8000, np.float32)], axis=1)
    np.testing.assert_allclose(read_audio(wav_bytes(stereo, 16000), 16000), tone(16000) / 2, atol=1e-4)


def test_arrays():
    np.testing.assert_array_equal(read_audio(tone(16000), 16000), tone(16000))
    assert read_audio(np.array([-32768, 16384], np.int16), 16000).tolist() == [-1.0, 0.5]
    assert len(read_audio(tone(8000), 16000, source_rate=8000)) == 8000


@pytest.mark.parametrize(
    "source,message",
    [
        (b"", "empty"),
        (b"not a sound", "cannot be decoded"),
        (wav_bytes(tone(16000), 16000)[:20], "cannot be decoded"),
        (wav_bytes(np.zeros(0, np.float32), 16000), "no samples"),
        (wav_bytes(np.array([0, np.nan], np.float32), 16000, "FLOAT"), "NaN"),
        (np.zeros(0, np.float32), "no samples"),
        (np.array([np.inf], np.float32), "infinite"),
        (np.zeros((1, 2, 3), np.float32), "expected"),
        (np.array(["a"]), "expected"),
        (np.array([0, 16384]), "64-bit samples is unknown"),
        (np.zeros((2, 800), np.float32), r"float32\[2, 800\]: more channels than samples"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # a WAV of floats has the time of its making in it
)
def test_bad_input_is_explained(source, message):
    with pytest.raises(AudioError, match=message):
        read_audio(source, 16000)


def silence(frames, rate, channels=1):
    """A FLAC file of nothing: kilobytes, however long."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros((frames, channels), np.int16), rate, format="FLAC")
    return file.getvalue()


def test_too_long_is_refused_before_decoding(monkeypatch):
    monkeypatch.setattr("ar_omni_jax.tokenizers.speech.audio.MAX_SAMPLES", 100_000)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *args, **options: pytest.fail("decoded"))
    for source in (silence(100_001, 16000), silence(50_001, 16000, channels=2), silence(50_001, 8000)):
        assert len(source) < 20_000
        with pytest.raises(AudioError, match="are more than 100000.*cut it first"):
            read_audio(source, 16000)
    with pytest.raises(AudioError, match="audio array.* are more than 100000"):
        read_audio(np.broadcast_to(np.float32(0), 10**9), 16000)


def test_a_rate_that_would_stretch_a_sound_to_gigabytes_is_refused():
    with pytest.raises(AudioError, match="at 1 Hz are more than"):
        read_audio(wav_bytes(np.zeros(20_000, np.int16), 1), 16000)
    for rate in (0, -8000, float("nan"), float("inf"), "16000", 1e300, 10**400):  # the resampler would not end
        with pytest.raises(AudioError, match="give a positive number"):
            read_audio(tone(16000), 16000, source_rate=rate)


def test_missing_and_empty_files_are_named(tmp_path):
    with pytest.raises(AudioError, match="gone.wav.*does not exist"):
        read_audio(tmp_path / "gone.wav", 16000)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match="empty.wav.*0 bytes"):
        read_audio(str(tmp_path / "empty.wav"), 16000)
