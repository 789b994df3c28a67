"""All answers to a list of prompts in one call: the engine for those who need no stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ar_omni_jax.decoding.engine import Engine, GenerationError, Request
from ar_omni_jax.decoding.request import plan
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.vocabulary import JointVocabulary

__all__ = ["GenerationError", "generate"]

CHUNK = 64
BUCKET = 64  # cache lengths are rounded up, so that few programs are compiled


def generate(
    model: Transformer,
    prompts: Sequence[np.ndarray],
    tasks: Sequence[str],
    vocabulary: JointVocabulary,
    *,
    strategies: Mapping | None = None,
    budgets: Mapping[str, int] | None = None,
    max_new_tokens: int | None = None,
    seeds: Sequence[int] | None = None,
    batch_size: int = 32,
) -> list[np.ndarray]:
    """Answers prompts; every answer is legal by its task's grammar and closed by its end marker.

    Args:
      prompts: int32 ids each, ending where the model is to go on (`templates.prompt`).
      tasks: the task of each prompt (`decoding/grammar.py`).
      strategies: {part kind or (task, part kind): Strategy}, over the defaults of `decoding/strategy.py`.
      budgets: {"text": n, "speech": n}, the largest number of ids of one such part.
      max_new_tokens: of each answer, end marker included; None = what the task's parts may need. The model's
        `max_length` limits it in any case.
      seeds: one a prompt (None: all 0). An answer depends on its own prompt and seed, not on its neighbours.
      batch_size: rows computed at a time.
    Returns: int32 ids of each answer, without the prompt, end marker included.
    Raises GenerationError (VocabularyError, StrategyError) when a prompt cannot be answered within its limits.
    """
    seeds = [0] * len(prompts) if seeds is None else list(seeds)
    if not len(prompts) == len(tasks) == len(seeds):
        raise GenerationError(f"{len(prompts)} prompts, {len(tasks)} tasks and {len(seeds)} seeds: give one each")
    requests = [
        Request(prompt, task, seed, strategies, budgets, max_new_tokens)
        for prompt, task, seed in zip(prompts, tasks, seeds, strict=True)
    ]
    longest = model.config.max_length
    # Nothing is answered when one cannot be: all are checked first.
    plans = [plan(request, f"prompt {i}", vocabulary, longest) for i, request in enumerate(requests)]
    if not requests:
        return []
    rows = min(batch_size, 1 << (len(requests) - 1).bit_length())
    needed = max(len(p.prompt) + p.left for p in plans)
    capacity = min(-(-needed // BUCKET) * BUCKET, longest)
    # Longest first: the last rows to finish are then short ones.
    order = sorted(range(len(requests)), key=lambda i: -plans[i].left)
    engine = Engine(model, vocabulary, rows=rows, capacity=capacity, chunk=CHUNK)
    answers = dict(zip(order, engine.generate([requests[i] for i in order]), strict=True))
    for answer in answers.values():
        if isinstance(answer, Exception):
            raise answer
    return [answers[i] for i in range(len(requests))]
