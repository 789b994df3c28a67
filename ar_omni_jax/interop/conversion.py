"""What `convert` does between reading and writing a backbone: vocabulary, new rows, norm placement and type."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax.interop.arrays import DTYPES, KEEP
from ar_omni_jax.interop.backbone import Backbone, with_dtype
from ar_omni_jax.interop.errors import InteropError
from ar_omni_jax.interop.extend import initialize_rows
from ar_omni_jax.interop.hf_config import vocabulary_map
from ar_omni_jax.tokenizers.bundle import load_tokenizers
from ar_omni_jax.tokenizers.text import TokenizerError
from ar_omni_jax.vocabulary import JointVocabulary, Modality, VocabularyError, chameleon_vocabulary

PUBLISHED = "chameleon"


def prepare(backbone: Backbone, options: Any) -> Backbone:
    """The backbone as the command line wants it; every decision that it leaves open is a note.

    Raises InteropError when vocabulary and model do not fit.
    """
    backbone = _placed(backbone, options.norm_placement)
    backbone = _named(backbone, options)
    _require_same_names(backbone)
    if options.init_rows:
        backbone = initialize_rows(backbone, options.init_rows, options.init_seed)
    elif backbone.vocabulary is not None and backbone.vocabulary.size != backbone.config.vocab_size:
        more = backbone.vocabulary.size > backbone.config.vocab_size
        raise InteropError(
            f"vocabulary {backbone.vocabulary.name!r} has {backbone.vocabulary.size} ids, the model "
            f"{backbone.config.vocab_size}; choose another --vocabulary"
            + (", or make new rows with --init_rows=missing" if more else ": rows are never dropped")
        )
    return _typed(backbone, options.dtype)


def _placed(backbone: Backbone, placement: str) -> Backbone:
    found = backbone.config.norm_placement
    if not placement or placement == found:
        return backbone
    return backbone.replace(config=dataclasses.replace(backbone.config, norm_placement=placement)).note(
        f"WARNING: {found}-norm weights are declared {placement}-norm. The two are different functions of the same "
        "weights: the result is a starting point for training, not the same model"
    )


def _named(backbone: Backbone, options: Any) -> Backbone:
    """With vocabulary, tokenizers and template: from the command line, the input, or the published ones."""
    settings = dict(backbone.settings)
    settings.update({k: v for k in ("tokenizers", "template") if (v := getattr(options, k))})
    notes = []
    if options.vocabulary:
        vocabulary = read_vocabulary(options.vocabulary)
    elif options.tokenizers:
        vocabulary = read_vocabulary(options.tokenizers)
    elif backbone.vocabulary is not None:
        vocabulary = backbone.vocabulary
    elif backbone.config.vocab_size == chameleon_vocabulary().size:
        vocabulary = chameleon_vocabulary()
        notes.append("65,536 ids and no --vocabulary: the published layout (chameleon) is taken")
    else:
        return backbone.replace(settings=settings)
    if backbone.vocabulary is not None:
        _require_same_meaning(backbone.vocabulary, vocabulary)
    if "template" not in settings and vocabulary.fingerprint == chameleon_vocabulary().fingerprint:
        settings["template"] = "released"
        notes.append("prompts follow the released checkpoints' templates (--template=paper for Table 10's)")
    if vocabulary.fingerprint == chameleon_vocabulary().fingerprint:
        settings.setdefault("tokenizers", PUBLISHED)
    return backbone.replace(vocabulary=vocabulary, settings=settings).note(*notes)


def _require_same_meaning(old: JointVocabulary, new: JointVocabulary) -> None:
    """InteropError when ids that meant something come to mean something else: their rows would be others' rows."""
    olds, news = _meanings(old), _meanings(new)
    changed = [i for i, meaning in sorted(olds.items()) if news.get(i) != meaning]
    if changed:
        i = changed[0]
        raise InteropError(
            f"vocabulary {new.name!r} ({new.fingerprint}) is not the model's {old.name!r} ({old.fingerprint}): "
            f"{len(changed)} ids mean something else; the first, {i}, is {olds[i]} in the model and "
            f"{news.get(i, 'nothing')} there. Rows do not move between ids: choose a vocabulary that keeps them"
        )


def _require_same_names(backbone: Backbone) -> None:
    """InteropError when the input's HF config has image codes or special tokens at other ids than the vocabulary."""
    theirs = backbone.hf.get("vocabulary_map")
    if backbone.vocabulary is None or not isinstance(theirs, dict):
        return
    ours = {name: i for name, i in vocabulary_map(backbone.vocabulary).items() if name != "<image>"}
    wrong = [name for name, i in ours.items() if theirs.get(name, i) != i]
    wrong += [name for name in theirs if name.startswith("IMGIMG") and name not in ours]
    if wrong:
        raise InteropError(
            f"the input's config.json has {wrong[0]} at id {theirs[wrong[0]]}, vocabulary {backbone.vocabulary.name!r} "
            f"{f'at {ours[wrong[0]]}' if wrong[0] in ours else 'has no such code'} ({len(wrong)} such names); give the "
            "--vocabulary that the model was trained with"
        )


def _meanings(vocabulary: JointVocabulary) -> dict[int, str]:
    """{id: what it stands for} of every id that is not reserved."""
    found = {i: f"the marker {name}" for name, i in vocabulary.markers.items()}
    for modality in (Modality.TEXT, Modality.IMAGE, Modality.SPEECH):
        codes = np.arange(vocabulary.range_of(modality).count)
        ids = vocabulary.to_ids(modality, codes).tolist()
        found |= {i: f"{modality.name.lower()} {code}" for code, i in enumerate(ids)}
    return found


def read_vocabulary(word: str) -> JointVocabulary:
    """ "chameleon", a vocabulary.json, or the name or folder of tokenizers; InteropError when it is none of them."""
    if word == PUBLISHED:
        return chameleon_vocabulary()
    try:
        if Path(word).is_file():
            return JointVocabulary.from_dict(json.loads(Path(word).read_text(encoding="utf-8")))
        return load_tokenizers(word, need=()).vocabulary
    except (VocabularyError, TokenizerError, KeyError, TypeError, ValueError) as error:
        raise InteropError(
            f"{word!r} is no vocabulary ({error}); give {PUBLISHED}, a tokenizers folder or a vocabulary.json"
        ) from error


def _typed(backbone: Backbone, word: str) -> Backbone:
    if word == KEEP:
        return backbone
    config = dataclasses.replace(backbone.config, param_dtype=word)
    return with_dtype(backbone.replace(config=config), DTYPES[word])


def describe(backbone: Backbone) -> str:
    """One line for the user: size, shape, norms and types."""
    c = backbone.config
    heads = f"{c.num_heads} heads" + (f" on {c.num_kv_heads}" if c.num_kv_heads != c.num_heads else "")
    count = backbone.config.parameter_count()
    if backbone.tie == "shared":
        count -= c.vocab_size * c.d_model
    types = "/".join(sorted(set(backbone.dtypes.values())))
    return (
        f"{count / 1e9:.4g} B parameters: {c.num_layers} layers, width {c.d_model}, {heads}, feed-forward {c.d_ff}, "
        f"{c.vocab_size} ids, {c.norm_placement}-norm, RoPE {c.rope_theta:g}, {backbone.tie} tables, {types}"
    )
