"""Coming back: what a checkpoint must agree with before a run goes on from it, or starts from its weights."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from ar_omni_jax.checkpoint import CheckpointError, Description, load_arrays, named_leaves, place_leaves
from ar_omni_jax.config import changes_on_resume
from ar_omni_jax.training.progress import say
from ar_omni_jax.vocabulary import JointVocabulary


def require_same_run(
    saved: Description,
    where: str,
    *,
    vocabulary: JointVocabulary,
    tokenizers: Mapping[str, str],
    config: Mapping[str, Any],
    data: str,
) -> None:
    """CheckpointError when the checkpoint `where` belongs to another run than what follows; changes that may be made
    between two processes of a run are told."""
    require_same_vocabulary(saved, vocabulary, where)
    remedy = "Use a new --workdir or the old values"
    for name, identity in tokenizers.items():
        if saved.tokenizers.get(name, identity) != identity:
            raise CheckpointError(
                f"{where} was trained with {name} tokenizer {saved.tokenizers[name]}, this run has {identity}. {remedy}"
            )
    refused, warned = changes_on_resume(saved.config, config)
    if refused:
        raise CheckpointError(f"{where} is of another model, optimizer or parent: {'; '.join(refused)}. {remedy}")
    if saved.data and saved.data != data:
        warned.append(f"the data set was {saved.data} and is {data}: its order is not continued")
    for change in warned:
        say(f"warning: resuming with a change: {change}")


def with_parent(config: ConfigDict, saved: Mapping[str, Any]) -> ConfigDict:
    """`config` with the `train.init_from` that the run began with, where the command no longer gives it."""
    parent = saved.get("train", {}).get("init_from", "")
    if config.train.init_from or not parent:
        return config
    config = ConfigDict(config.to_dict())
    config.train.init_from = parent
    return config


def require_same_vocabulary(saved: Description, vocabulary: JointVocabulary, where: str) -> None:
    """CheckpointError, both named, unless the checkpoint speaks `vocabulary`."""
    if saved.vocabulary_fingerprint != vocabulary.fingerprint:
        raise CheckpointError(
            f"{where} speaks vocabulary {saved.vocabulary.get('name')!r} = {saved.vocabulary_fingerprint}, this run "
            f"{vocabulary.name!r} = {vocabulary.fingerprint}; use the tokenizers it was trained with"
        )


def initialize_from(state, directory: str, vocabulary: JointVocabulary, norm_placement: str = ""):
    """`state` with the weights of another run's checkpoint; optimizer and step stay fresh.

    The perceptual projection comes along where the checkpoint has one that fits; an exported model has none. Weights
    of another `norm_placement` than this run's are loaded with a warning: they are then another function.
    """
    where = f"config.train.init_from = {directory}"
    own = named_leaves(state.params)
    leaves, description = load_arrays(directory, "params.", sharding={k: v.sharding for k, v in own.items()})
    require_same_vocabulary(description, vocabulary, where)
    for name, leaf in own.items():
        if name.startswith("projection.") and (name not in leaves or leaves[name].shape != leaf.shape):
            say(f"{where} has no {name} of shape {list(leaf.shape)}; it starts from new values")
            leaves[name] = leaf
    loaded = place_leaves(state.params, leaves, where)
    found = description.config.get("model", {}).get("norm_placement", norm_placement)
    if norm_placement and found != norm_placement:
        logging.warning(
            "%s holds %s-norm weights, this run is %s-norm: a starting point, not the same model (the same function "
            "needs --config.model.norm_placement=%s)",
            where,
            found,
            norm_placement,
            found,
        )
    say(f"weights from step {description.step} of {directory}")
    return dataclasses.replace(state, params=jax.tree.map(lambda x, old: x.astype(old.dtype), loaded, state.params))
