"""Speech by espeak-ng: the same whatever was said before, and different by voice, speed and pitch."""

import numpy as np
import pytest

from data_pipelines.toyworld.documents import VOICES
from data_pipelines.toyworld.espeak import SpeechError, Synthesizer

pytest.importorskip("espeakng_loader")
TEXT = "a large red circle at the top left"


def test_an_utterance_does_not_depend_on_earlier_ones():
    voice = Synthesizer()
    first = voice.speak(TEXT, "en-us+f3")
    voice.speak("how many shapes are there", "en-gb+m3", 200, 70)
    np.testing.assert_array_equal(voice.speak(TEXT, "en-us+f3"), first)
    np.testing.assert_array_equal(Synthesizer().speak(TEXT, "en-us+f3"), first)


def test_voices_speed_and_pitch_are_heard():
    voice = Synthesizer()
    waves = [voice.speak(TEXT, name) for names in VOICES.values() for name in names]
    assert len({wave.tobytes() for wave in waves}) == 8
    slow, fast = voice.speak(TEXT, "en-us", 165), voice.speak(TEXT, "en-us", 215)
    assert len(slow) > 1.15 * len(fast)
    assert voice.speak(TEXT, "en-us", 180, 35).tobytes() != voice.speak(TEXT, "en-us", 180, 65).tobytes()


def test_ends_are_trimmed_and_the_level_set():
    wave = Synthesizer().speak(TEXT, "en-gb")
    assert wave.dtype == np.float32 and np.abs(wave).max() == pytest.approx(0.7)
    for end in (wave[:1600], wave[-1600:]):  # sound within 0.1 s of either end
        assert np.abs(end).max() > 0.005


def test_a_data_path_too_long_for_the_library_is_linked(tmp_path, monkeypatch):
    import espeakng_loader

    expected = Synthesizer().speak(TEXT, "en-us")
    long_path = tmp_path / ("a" * 100) / ("b" * 100)
    long_path.parent.mkdir()
    long_path.symlink_to(espeakng_loader.get_data_path())
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(long_path))
    np.testing.assert_array_equal(Synthesizer().speak(TEXT, "en-us"), expected)


def test_errors_are_plain(monkeypatch):
    with pytest.raises(SpeechError, match="no voice 'en-mars'"):
        Synthesizer().speak(TEXT, "en-mars")
    with pytest.raises(SpeechError, match="no sound of ''"):
        Synthesizer().speak("", "en-us")
    monkeypatch.setitem(__import__("sys").modules, "espeakng_loader", None)
    with pytest.raises(SpeechError, match=r"ar_omni_jax\[demo\]"):
        Synthesizer()
