"""A checkpoint ready to answer: model, tokenizers, templates and the decode loop in one object."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from ar_omni_jax.checkpoint import CheckpointError, load_for_inference
from ar_omni_jax.decoding.generate import GenerationError, generate
from ar_omni_jax.decoding.grammar import DEFAULT_BUDGETS
from ar_omni_jax.documents import Document, DocumentError
from ar_omni_jax.inference import Answer, detokenize, prompt_tokens
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.tokenizers.bundle import Tokenizers, load_tokenizers
from ar_omni_jax.tokenizers.text import TokenizerError
from ar_omni_jax.vocabulary import VocabularyError

# What a person can mend when a checkpoint answers: commands tell it in one line. Anything else is a fault of the
# program and keeps its traceback.
FOR_PEOPLE = (CheckpointError, GenerationError, DocumentError, TokenizerError, VocabularyError, OSError)


@dataclasses.dataclass
class Predictor:
    """Answers documents. `root` resolves relative media paths; `step` is the checkpoint's training step."""

    model: Transformer
    tokenizers: Tokenizers
    template: str
    step: int
    root: Path = Path(".")

    @classmethod
    def load(cls, checkpoint: str | Path, step: int | None = None) -> Predictor:
        """Loads a training run's newest checkpoint (or `step`).

        Raises VocabularyError when the tokenizers at hand are not those that the checkpoint was trained with.
        """
        loaded = load_for_inference(checkpoint, step)
        tokenizers = load_tokenizers(loaded.config["data"]["tokenizers"])
        tokenizers.vocabulary.require_same(loaded.vocabulary.fingerprint, f"checkpoint {checkpoint}")
        model = nnx.eval_shape(lambda: Transformer(loaded.model_config, rngs=nnx.Rngs(0)))
        nnx.update(model, loaded.params)
        return cls(model, tokenizers, loaded.config["data"]["template"], loaded.step)

    def untrained(self, seed: int = 0) -> Predictor:
        """The same shape with fresh random weights: the floor that training has to rise above."""
        return dataclasses.replace(self, model=Transformer(self.model.config, rngs=nnx.Rngs(seed)), step=0)

    @property
    def sample_rate(self) -> int:
        """Samples a second of generated speech."""
        return self.tokenizers.speech.sample_rate

    def respond(
        self,
        documents: Sequence[Document],
        *,
        seeds: Sequence[int],
        root: Path | None = None,
        budgets: Mapping[str, int] | None = None,
        **options,
    ) -> list[Answer]:
        """One answer a document (its own last answer, if any, is not shown to the model).

        A document's answer depends on its own prompt and seed alone, never on its neighbours. `budgets` are the
        largest numbers of tokens of a text and a speech part; they and `options` go to `decoding.generate.generate`.
        """
        budgets = {**DEFAULT_BUDGETS, **(budgets or {})}
        prompts = prompt_tokens(documents, self.tokenizers, self.template, root or self.root)
        tasks = [d.task for d in documents]
        outputs = generate(
            self.model, prompts, tasks, self.tokenizers.vocabulary, seeds=list(seeds), budgets=budgets, **options
        )
        return [detokenize(np.asarray(tokens), self.tokenizers, budgets) for tokens in outputs]
