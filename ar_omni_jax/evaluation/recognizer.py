"""An independent speech recognizer for the toy language: pocketsphinx, which shares nothing with the model it judges.

It listens with a grammar, so it hears only sentences of the toy language, or nothing. Its word error on speech by
espeak-ng itself is the floor for every system judged by it; print it beside.
"""

import os
import tempfile

import numpy as np

SAMPLE_RATE = 16_000
_SILENCE_SECONDS = 0.25  # put before and after: the acoustic model expects a pause at either end
_PEAK = 0.7  # level that every wave is brought to
# Synthetic speech has true silence between its sounds, which no recording has and whose log energy misleads the
# acoustic model: word error on espeak-ng's en-gb falls from 73 % to 1 % with noise 47 dB under the peak.
_NOISE = 0.003


class RecognizerError(RuntimeError):
    """The recognizer is not installed, or was given what it cannot hear."""


class Recognizer:
    """Speech to text for sentences of the toy language.

    Args:
        grammar: JSGF text with one public rule; the toy world's by default.

    Raises:
        RecognizerError: when pocketsphinx is not installed or refuses the grammar.
    """

    def __init__(self, grammar: str | None = None):
        try:
            import pocketsphinx
        except ImportError as error:
            raise RecognizerError(
                "judging speech needs pocketsphinx, which the demo extra brings: pip install 'ar_omni_jax[demo]'"
            ) from error
        if grammar is None:
            from data_pipelines.toyworld.grammar import jsgf_grammar

            grammar = jsgf_grammar()
        # pocketsphinx reads grammars from files only, and only while it starts.
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "grammar.jsgf")
            with open(path, "w") as file:
                file.write(grammar)
            try:
                self._decoder = pocketsphinx.Decoder(
                    jsgf=path, lm=None, samprate=SAMPLE_RATE, loglevel="FATAL", cmn="batch"
                )
            except RuntimeError as error:
                raise RecognizerError(f"pocketsphinx refused the grammar: {error}") from error

    def transcribe(self, wave: np.ndarray, sample_rate: int = SAMPLE_RATE) -> str:
        """Words heard, lower case; "" when no sentence of the language fits.

        Args:
            wave: float [T] in [-1, 1], mono.
            sample_rate: of `wave`, Hz; resampled to 16 kHz where it differs.

        Raises:
            RecognizerError: for a wave of another shape or type, or with values that are not finite.
        """
        wave = np.asarray(wave)
        if wave.ndim != 1 or not np.issubdtype(wave.dtype, np.floating):
            raise RecognizerError(f"the recognizer needs a mono float wave of shape [T]; got {wave.dtype} {wave.shape}")
        if not np.isfinite(wave).all():
            raise RecognizerError("the wave holds NaN or infinite samples")
        if wave.size == 0:
            return ""
        if sample_rate != SAMPLE_RATE:
            import soxr

            wave = soxr.resample(wave.astype(np.float32), sample_rate, SAMPLE_RATE)
        peak = np.abs(wave).max()
        if peak == 0:
            return ""
        samples = np.pad(wave * (_PEAK / peak), round(_SILENCE_SECONDS * SAMPLE_RATE))
        samples += _NOISE * np.random.default_rng(0).standard_normal(samples.size)
        self._decoder.start_utt()
        self._decoder.process_raw(np.round(samples * 32767).astype("<i2").tobytes(), full_utt=True)
        self._decoder.end_utt()
        hypothesis = self._decoder.hyp()
        return hypothesis.hypstr.strip().lower() if hypothesis else ""
