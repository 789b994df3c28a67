"""One point of the benchmark of an accelerator, in a process of its own: the step that training jits, on full rows."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import jax
import numpy as np

from ar_omni_jax.benchmarks.accelerator_plan import Point
from ar_omni_jax.benchmarks.training_work import batch_of, document_of
from ar_omni_jax.config import load_config
from ar_omni_jax.documents import TokenDocument
from ar_omni_jax.machine import machine
from ar_omni_jax.main import load_vocabulary, make_trainer
from ar_omni_jax.model.attention import attention_name
from ar_omni_jax.parallel.mesh import make_mesh
from ar_omni_jax.tokenizers.image.config import VQGANConfig
from ar_omni_jax.training.accounting import describe_flops, describe_mfu, memory
from ar_omni_jax.training.metrics import peak_flops
from ar_omni_jax.training.perceptual import FrozenImageDecoder
from ar_omni_jax.training.step import Trainer
from ar_omni_jax.vocabulary import JointVocabulary, Modality

MARKERS = 2  # <bos> and <eos>; <eoh> too where there is an answer
BATCHES = 2  # different ones, in turn
WARM_UP = 2  # steps after compiling that are not timed


def measure(point: Point, steps: int, repeats: int) -> dict[str, Any]:
    """Compiles, trains `repeats` blocks of `steps` steps and times each block.

    Keys: "block_seconds", "useful_tokens" (of a step, padding left out), "places" (with it), "flops_per_token",
    "peak_flops" of all devices or None, "compile_seconds", "compiled_bytes" (of a device, by the compiler),
    "memory" (of `accounting.memory`), "losses" (first and last of the timed steps), "skipped", "attention", "formula"
    (two lines for people) and "machine". Errors of settings as `main`.
    """
    config = load_config(point.spec, point.settings(jax.device_count()))
    vocabulary, _ = load_vocabulary(config)
    mesh = make_mesh(config.mesh.to_dict())
    trainer = make_trainer(config, vocabulary, mesh, _codebook(vocabulary) if config.loss.perceptual_weight else None)
    rows, length = config.data.batch_size, config.data.length
    start = time.perf_counter()
    compiled = trainer.lower(rows, length).compile()
    compile_seconds = time.perf_counter() - start
    batches = [full_rows(vocabulary, rows, length, point.documents, seed) for seed in range(BATCHES)]
    timed = _train(trainer, compiled, batches, steps, repeats)
    found, peak = compiled.memory_analysis(), peak_flops()
    names = ("argument_size_in_bytes", "temp_size_in_bytes", "generated_code_size_in_bytes")
    model = trainer.model_config
    return timed | {
        "useful_tokens": int((batches[0]["segment_ids"] > 0).sum()),
        "places": rows * length,
        "flops_per_token": model.flops_per_token(length),
        "peak_flops": peak[0] * jax.device_count() if peak else None,
        "compile_seconds": compile_seconds,
        "compiled_bytes": sum(getattr(found, name) for name in names),
        "memory": memory(),
        "attention": attention_name(model, mesh.devices.flat[0].platform, mesh.shape["sequence"]),
        "formula": [describe_flops(model, length), describe_mfu(peak)],
        "machine": machine(),
    }


def _train(trainer: Trainer, compiled, batches, steps: int, repeats: int) -> dict[str, Any]:
    """Runs the compiled step. A block ends when its last step has ended; within it the host runs ahead, as in
    training."""
    state = trainer.init(0)
    frozen = jax.device_put(trainer.frozen, trainer.state_sharding.step) if trainer.loss.perceptual_weight else None
    turns = itertools.cycle([trainer.put(batch) for batch in batches])
    for _ in range(WARM_UP):
        state, metrics = compiled(state, frozen, next(turns))
    jax.block_until_ready(metrics)
    blocks, seen = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(steps):
            state, metrics = compiled(state, frozen, next(turns))
            seen.append(metrics)
        jax.block_until_ready((state, metrics))
        blocks.append(time.perf_counter() - start)
    skipped = int(sum(float(found["skipped"]) for found in seen))
    losses = [float(seen[0]["loss"]), float(seen[-1]["loss"])]
    return {"block_seconds": blocks, "steps": steps, "losses": losses, "skipped": skipped}


def _codebook(vocabulary: JointVocabulary) -> FrozenImageDecoder:
    """An image codebook of the published shape, drawn once."""
    shape = (vocabulary.image.count, VQGANConfig().embed_dim)
    return FrozenImageDecoder(np.random.default_rng(5).standard_normal(shape, np.float32))


def full_rows(vocabulary: JointVocabulary, rows: int, length: int, documents: int, seed: int) -> dict[str, np.ndarray]:
    """A batch [rows, length] of random ids without padding, `documents` of about equal length in each row: text with
    a picture where it has room, else text."""
    rng = np.random.default_rng(seed)
    ends = [math.ceil(length * i / documents) for i in range(documents + 1)]
    lengths = [end - start for start, end in itertools.pairwise(ends)]
    found = [[_document(vocabulary, n, f"{row}-{i}", rng) for i, n in enumerate(lengths)] for row in range(rows)]
    return batch_of(found, length, vocabulary.pad)


def _document(vocabulary: JointVocabulary, length: int, name: str, rng: np.random.Generator) -> TokenDocument:
    """Of exactly `length` tokens."""

    def some(modality: Modality, count: int):
        return modality, vocabulary.to_ids(modality, rng.integers(0, vocabulary.range_of(modality).count, count))

    left = length - MARKERS - 1 - vocabulary.image_length
    if left < 1:
        return document_of(vocabulary, name, "text", "text", some(Modality.TEXT, length - MARKERS))
    picture = some(Modality.IMAGE, vocabulary.image_length)
    return document_of(vocabulary, name, "t2i", "image", some(Modality.TEXT, left), picture)
