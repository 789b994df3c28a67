"""Who writes down what speech says: the toy world's pocketsphinx, Whisper by transformers, or the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ar_omni_jax.evaluation.judges.plugins import make_judge, pretrained, torch_and_transformers
from ar_omni_jax.evaluation.recognizer import SAMPLE_RATE, Recognizer

WINDOW_SECONDS = 30  # Whisper's; longer speech is cut there


class SpeechRecognizer(Protocol):
    """`name` stands in the results, and a run under another name is another run. `sample_rate` in Hz."""

    name: str
    sample_rate: int

    def transcribe_all(self, waves: Sequence[np.ndarray]) -> list[str]:
        """The words of each wave, float32 [T] mono in [-1, 1] at `sample_rate`; "" where none are heard."""
        ...


class ToyRecognizer:
    """pocketsphinx with a grammar: JSGF text, and its name in the results; by default the whole toy language's."""

    name = "pocketsphinx with the toy language's grammar"
    sample_rate = SAMPLE_RATE

    def __init__(self, grammar: str | None = None, name: str | None = None):
        self.name = name or self.name
        self._recognizer = Recognizer(grammar)

    def transcribe_all(self, waves: Sequence[np.ndarray]) -> list[str]:
        """See `SpeechRecognizer`."""
        return [self._recognizer.transcribe(wave) for wave in waves]


class Whisper:
    """Whisper by transformers, greedy; in windows of 30 s where the speech is longer.

    Args:
      where: a folder that save_pretrained wrote, or a hub id (the paper's judge: openai/whisper-large-v2).
      language: spoken one, for models of many languages. batch: windows heard together.
    Raises JudgeError when PyTorch or transformers is not installed, or the model cannot be loaded.
    """

    sample_rate = 16_000

    def __init__(self, where: str, language: str = "en", batch: int = 8):
        torch, transformers = torch_and_transformers("the recognizer Whisper")
        self.name = f"whisper:{where}"
        self._torch, self._batch = torch, batch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._processor = pretrained(transformers.WhisperProcessor.from_pretrained, where, "Whisper's processor")
        load = transformers.WhisperForConditionalGeneration.from_pretrained
        self._model = pretrained(load, where, "Whisper").to(self._device).eval()
        many = getattr(self._model.generation_config, "is_multilingual", False)
        self._options = {"language": language, "task": "transcribe"} if many else {}

    def transcribe_all(self, waves: Sequence[np.ndarray]) -> list[str]:
        """See `SpeechRecognizer`."""
        window = WINDOW_SECONDS * self.sample_rate
        pieces = [(k, wave[at : at + window]) for k, wave in enumerate(waves) for at in range(0, len(wave), window)]
        heard: list[list[str]] = [[] for _ in waves]
        for start in range(0, len(pieces), self._batch):
            rows = pieces[start : start + self._batch]
            texts = self._windows([np.asarray(wave, np.float32) for _, wave in rows])
            for (k, _), text in zip(rows, texts, strict=True):
                heard[k].append(text.strip())
        return [" ".join(filter(None, texts)) for texts in heard]

    def _windows(self, waves: list[np.ndarray]) -> list[str]:
        inputs = self._processor(
            waves, sampling_rate=self.sample_rate, return_tensors="pt", return_attention_mask=True
        ).to(self._device)
        with self._torch.inference_mode():
            tokens = self._model.generate(
                inputs.input_features,
                attention_mask=inputs.attention_mask,
                do_sample=False,
                num_beams=1,
                **self._options,
            )
        return self._processor.batch_decode(tokens, skip_special_tokens=True)


def load_recognizer(name: str) -> SpeechRecognizer:
    """ "pocketsphinx", "whisper:FOLDER_OR_HUB_ID", or "MODULE:FACTORY" of an own one. Raises JudgeError."""
    known = {
        "pocketsphinx": lambda _: ToyRecognizer(),
        "whisper": lambda where: Whisper(where or "openai/whisper-large-v2"),
    }
    return make_judge("--recognizer", name, known, ("name", "sample_rate", "transcribe_all"))
