"""New rows for ids that the base model never trained: speech codes, markers, or a vocabulary larger than the model's.

The rule, for every chosen id (embedding table E, output matrix U, both [V, D]):

    E[id] = mean(E) + 1.0 std(E) z,    U[id] = mean(U) + 0.1 std(U) z',    z, z' ~ N(0, 1)

with mean and standard deviation by channel over the trained rows: the text, image and speech ids and markers that are
not chosen (reserved ids never are trained). An embedding so looks like a trained one to the first layer (under
swin-norm nothing rescales it), while new ids start with about the average logit and leave the base model's predictions
nearly as they were; the small spread breaks the symmetry. A tied table has one rule, E's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from ar_omni_jax.interop.backbone import SEPARATE, Backbone
from ar_omni_jax.interop.errors import InteropError
from ar_omni_jax.vocabulary import MODALITY_NAMES, JointVocabulary, Modality

EMBEDDING_SPREAD, OUTPUT_SPREAD = 1.0, 0.1
MISSING, MARKERS = "missing", "markers"


def choose_ids(words: str, vocabulary: JointVocabulary, rows: int) -> np.ndarray:
    """bool [vocabulary.size]: the ids that `--init_rows` names.

    words: comma-separated: text, image, speech (all ids of that modality), markers (all of them), a marker's name, an
    id, a range FIRST-LAST, or missing (ids from `rows` on, which the base model does not have).
    Raises InteropError for any other word.
    """
    chosen = np.zeros(vocabulary.size, bool)
    for word in filter(None, (w.strip() for w in words.split(","))):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", word)
        if word in MODALITY_NAMES and word != "marker":
            chosen |= vocabulary.mask(Modality[word.upper()])
        elif word == MARKERS:
            chosen[list(vocabulary.markers.values())] = True
        elif word == MISSING:
            chosen[rows:] = True
        elif word in vocabulary.markers:
            chosen[vocabulary.marker(word)] = True
        elif span and int(span[1]) <= int(span[2] or span[1]) < vocabulary.size:
            chosen[int(span[1]) : int(span[2] or span[1]) + 1] = True
        else:
            names = ", ".join(("text", "image", "speech", MARKERS, MISSING, *vocabulary.markers))
            raise InteropError(
                f"--init_rows: {word!r} names no ids; use {names}, an id below {vocabulary.size} or FIRST-LAST"
            )
    return chosen


def initialize_rows(backbone: Backbone, words: str, seed: int = 0) -> Backbone:
    """`backbone` with new rows for the ids in `words` (see `choose_ids`) of its vocabulary, larger if that is.

    Nothing is initialised that is not named: InteropError when the vocabulary has ids that neither the model nor
    `words` covers, or when no trained row is left to learn from.
    """
    vocabulary, rows = backbone.vocabulary, backbone.config.vocab_size
    if vocabulary is None:
        raise InteropError("--init_rows needs --vocabulary: which ids are speech codes and markers?")
    if vocabulary.size < rows:
        raise InteropError(
            f"vocabulary {vocabulary.name!r} has {vocabulary.size} ids, the model {rows}; rows are never dropped: "
            "choose the vocabulary that the model was trained with"
        )
    chosen = choose_ids(words, vocabulary, rows)
    uncovered = int((~chosen[rows:]).sum())
    if uncovered:
        raise InteropError(
            f"vocabulary {vocabulary.name!r} has {vocabulary.size} ids, the model {rows}: {uncovered} ids have no row; "
            f"add {MISSING} to --init_rows to make them"
        )
    if not chosen.any():
        return backbone
    trained = _trained(vocabulary, rows) & ~chosen
    if not trained.any():
        raise InteropError("--init_rows leaves no trained id to take mean and spread from; name fewer")
    get, size = backbone.get, vocabulary.size
    spreads = {"embedding": EMBEDDING_SPREAD} | ({"output": OUTPUT_SPREAD} if backbone.tie == SEPARATE else {})

    def extended(name: str) -> np.ndarray:
        array = get(name)
        return _filled(array, chosen, trained, spreads[name], [seed, len(name)], size) if name in spreads else array

    done = {"words": words, "seed": seed, "count": int(chosen.sum())}
    return backbone.replace(
        config=dataclasses.replace(backbone.config, vocab_size=size),
        get=extended,
        settings={**backbone.settings, "initialized_rows": done},
    ).note(f"rows of {int(chosen.sum())} ids ({words}) are new: mean of {int(trained.sum())} trained rows plus noise")


def _trained(vocabulary: JointVocabulary, rows: int) -> np.ndarray:
    mask = vocabulary.modality_table != Modality.MARKER
    mask[list(vocabulary.markers.values())] = True
    mask[rows:] = False
    return mask


def _filled(
    array: np.ndarray, chosen: np.ndarray, trained: np.ndarray, spread: float, seed: Sequence[int], size: int
) -> np.ndarray:
    """`array` [rows, D] with `size` rows, the chosen ones new."""
    total, squares = np.zeros(array.shape[1]), np.zeros(array.shape[1])
    places = np.flatnonzero(trained[: len(array)])
    for part in np.array_split(places, -(-len(places) // 4096)):  # float64 of a few rows at a time
        values = array[part].astype(np.float64)
        total, squares = total + values.sum(0), squares + np.square(values).sum(0)
    mean = total / len(places)
    deviation = np.sqrt(np.maximum(squares / len(places) - np.square(mean), 0.0))
    result = np.empty((size, array.shape[1]), array.dtype)
    result[: len(array)] = array
    rng = np.random.default_rng(seed)
    for part in np.array_split(np.flatnonzero(chosen), -(-int(chosen.sum()) // 4096)):
        noise = rng.standard_normal((len(part), array.shape[1]), np.float32)
        result[part] = (mean + spread * deviation * noise).astype(array.dtype)
    return result
