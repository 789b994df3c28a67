"""Speech from text by espeak-ng, called through ctypes from the shared library in the `espeakng-loader` wheel.

The library keeps its state in global variables: use one `Synthesizer` a process, and processes for parallel work.
"""

import _ctypes
import contextlib
import ctypes
import os
import tempfile

import numpy as np

SAMPLE_RATE = 16_000  # of what `speak` returns, Hz

_OUTPUT_SYNCHRONOUS = 2
_DONT_EXIT_ON_ERROR = 0x8000
_TEXT_IS_UTF8 = 1
_PARAMETER_RATE, _PARAMETER_PITCH = 1, 3
_LONGEST_DATA_PATH = 140  # the library keeps its data path in a buffer of 160 bytes

_FILE_NAMES = {"en-gb": "en"}  # the library finds voices by file, and British English lies in one called "en"

_PEAK = 0.7  # of full scale
_SILENCE = 0.01  # of the peak; what is quieter at either end is cut off
_MARGIN_SECONDS = 0.06  # of near silence that stays at either end

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class SpeechError(RuntimeError):
    """espeak-ng is missing, refused a voice or made no sound."""


class Synthesizer:
    """espeak-ng in this process. `speak` is deterministic: it does not depend on what was spoken before.

    The library carries the state of its noise, flutter and wave phase from one utterance to the next, and stopping
    and starting it does not clear them. So each utterance loads a fresh copy and unloads it, which takes 2 ms.
    """

    def __init__(self):
        try:
            import espeakng_loader
        except ImportError as error:
            raise SpeechError(
                "speech needs the espeakng-loader package, which the demo extra brings: pip install 'ar_omni_jax[demo]'"
            ) from error
        self._library_path = espeakng_loader.get_library_path()
        self._data_path = self._short_path(espeakng_loader.get_data_path())

    def _short_path(self, path: str) -> str:
        """`path`, or a link to it where the path is too long for the library."""
        if len(os.fsencode(path)) <= _LONGEST_DATA_PATH:
            return path
        self._link_folder = tempfile.TemporaryDirectory(prefix="espeak-")
        link = os.path.join(self._link_folder.name, "espeak-ng-data")
        os.symlink(path, link)
        return link

    @contextlib.contextmanager
    def _fresh_library(self):
        """(library, its sample rate in Hz), started; stopped and unloaded afterwards."""
        library = ctypes.CDLL(self._library_path)
        try:
            ctypes.CDLL(None).srand(1)  # the library's breath noise comes from the C library's rand()
            rate = library.espeak_Initialize(
                _OUTPUT_SYNCHRONOUS, 500, os.fsencode(self._data_path), _DONT_EXIT_ON_ERROR
            )
            if rate <= 0:
                raise SpeechError(
                    f"espeak-ng did not start with the data in {self._data_path}; reinstall espeakng-loader"
                )
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))
            yield library, rate
            library.espeak_Terminate()
        finally:
            _ctypes.dlclose(library._handle)

    def speak(self, text: str, voice: str, words_per_minute: int = 180, pitch: int = 50) -> np.ndarray:
        """Mono float32 [T] at 16 kHz, peak 0.7, ends trimmed.

        Args:
            text: what to say, plain words.
            voice: an espeak-ng voice, with a variant after a plus sign if wanted ("en-us+f3").
            words_per_minute: 80 to 450.
            pitch: 0 to 99; 50 is the voice's own.

        Raises:
            SpeechError: for an unknown voice, or when there is no sound.
        """
        chunks: list[np.ndarray] = []

        def receive(samples, count, _events) -> int:
            if samples and count > 0:
                chunks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
            return 0

        callback = _CALLBACK(receive)
        language, plus, variant = voice.partition("+")
        name = _FILE_NAMES.get(language, language) + plus + variant
        with self._fresh_library() as (library, rate):
            library.espeak_SetSynthCallback(callback)
            if library.espeak_SetVoiceByName(name.encode()) != 0:
                raise SpeechError(f"espeak-ng has no voice {voice!r}; names look like en-us or en-gb+f3")
            library.espeak_SetParameter(_PARAMETER_RATE, words_per_minute, 0)
            library.espeak_SetParameter(_PARAMETER_PITCH, pitch, 0)
            data = text.encode()
            status = library.espeak_Synth(data, ctypes.c_size_t(len(data) + 1), 0, 0, 0, _TEXT_IS_UTF8, None, None)
        samples = np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
        if status != 0 or not samples.any():
            raise SpeechError(f"espeak-ng made no sound of {text!r} with voice {voice!r} (status {status})")
        return _finish(samples, rate)


def _finish(samples: np.ndarray, rate: int) -> np.ndarray:
    """int16 at espeak's rate to float32 at 16 kHz with the ends trimmed and the peak set."""
    import soxr

    wave = soxr.resample(samples.astype(np.float32) / 32768.0, rate, SAMPLE_RATE)
    loud = np.flatnonzero(np.abs(wave) > _SILENCE * np.abs(wave).max())
    margin = round(_MARGIN_SECONDS * SAMPLE_RATE)
    wave = wave[max(0, loud[0] - margin) : loud[-1] + margin]
    return (wave * (_PEAK / np.abs(wave).max())).astype(np.float32)
