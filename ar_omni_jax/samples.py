"""Samples during training: the model's answers to held-out prompts, beside the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from ar_omni_jax.documents import TASKS, Role, split_token_class
from ar_omni_jax.inference import Answer, detokenize
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.tokenizers.bundle import Tokenizers
from ar_omni_jax.training.state import model_from_params
from ar_omni_jax.training.writers import Sample
from data_pipelines.loader import make_loader

SHOWN_TASKS = ("caption", "t2i", "asr", "tts", "chat_image")


def first_documents(batch: dict[str, np.ndarray], tasks: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{task: (prompt, answer)} int32 tokens of the first document of each task in a batch of packed rows.

    A document's prompt ends before its first target of role RESPONSE: just where the model starts to write.
    """
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for tokens, segments, classes in zip(batch["tokens"], batch["segment_ids"], batch["target_class"], strict=True):
        for segment in range(1, int(segments.max(initial=0)) + 1):
            places = np.flatnonzero(segments == segment)
            document, targets = tokens[places], classes[places[:-1]]
            task, role, _ = split_token_class(targets.astype(np.int32))
            answers = np.flatnonzero(role == Role.RESPONSE)
            if len(answers) and TASKS[task[0]] in tasks and TASKS[task[0]] not in found:
                start = int(answers[0]) + 1
                found[TASKS[task[0]]] = document[:start], document[start:]
    return found


class Sampler:
    """Answers one held-out prompt of each task; called by the loop as (params, step) -> samples.

    Args:
      data: folder of packed shards with a validation split.
    """

    def __init__(self, model_config: TransformerConfig, tokenizers: Tokenizers, data: Path):
        self._model_config, self._tokenizers = model_config, tokenizers
        rows = {"path": data}
        with make_loader(rows, split="validation", global_batch=64, seed=0) as loader:
            self._documents = first_documents(next(loader), SHOWN_TASKS)

    def __call__(self, params, step: int) -> list[Sample]:
        from ar_omni_jax.decoding.generate import generate

        model: nnx.Module = model_from_params(self._model_config, params)
        tasks = list(self._documents)
        prompts = [self._documents[task][0] for task in tasks]
        answers = generate(model, prompts, tasks, self._tokenizers.vocabulary, seeds=list(range(len(tasks))))
        samples = []
        for task, tokens in zip(tasks, answers, strict=True):
            made = detokenize(np.asarray(tokens), self._tokenizers)
            true = detokenize(self._documents[task][1], self._tokenizers)
            samples += self._show(task, made) + self._show(f"{task}-true", true)
        return samples

    def _show(self, name: str, response: Answer) -> list[Sample]:
        text = "\n\n".join([response.text, *(f"({problem})" for problem in response.problems)]).strip()
        image = response.images[0] if response.images else None
        audio = response.speech[0] if response.speech else None
        return [Sample(name, text, image, audio, self._tokenizers.speech.sample_rate if audio is not None else 0)]
