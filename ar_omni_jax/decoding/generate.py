"""Batched generation: one compiled prefill and loop for prompts of any lengths and tasks."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ar_omni_jax.decoding.grammar import END, TASK_GRAMMARS, Grammar, compile_grammar, part_limits
from ar_omni_jax.decoding.sampling import pick
from ar_omni_jax.model.cache import decode, prefill, unstack_layers
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.vocabulary import JointVocabulary

BUCKET = 64  # prompt and cache lengths are rounded up to multiples, so that few programs are compiled


class GenerationError(ValueError):
    """A request that cannot be answered; the message names the prompt and the remedy."""


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
    Raises GenerationError when a prompt cannot be answered within its limits.
    """
    grammar, starts = compile_grammar(vocabulary, strategies=strategies, budgets=budgets)
    seeds = [0] * len(prompts) if seeds is None else list(seeds)
    if not len(prompts) == len(tasks) == len(seeds):
        raise GenerationError(f"{len(prompts)} prompts, {len(tasks)} tasks and {len(seeds)} seeds: give one each")
    if model.config.vocab_size != vocabulary.size:
        sizes = f"{model.config.vocab_size} ids, vocabulary {vocabulary.name!r} {vocabulary.size}"
        raise GenerationError(f"the model has {sizes}; load the vocabulary that the checkpoint was trained with")
    limits = part_limits(vocabulary, budgets)
    prompts = [vocabulary.check_ids(p, f"prompt {i}").astype(np.int32) for i, p in enumerate(prompts)]
    room = [
        _row_budget(i, prompt, task, grammar, starts, limits, model.config.max_length, max_new_tokens)
        for i, (prompt, task) in enumerate(zip(prompts, tasks, strict=True))
    ]
    # Rows of one task and of like length together: they finish together, and are padded least.
    order = sorted(range(len(prompts)), key=lambda i: (starts[tasks[i]], len(prompts[i])))
    answers: dict[int, np.ndarray] = {}
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        states = [starts[tasks[i]] for i in rows]
        made = _answer_batch(
            model, [prompts[i] for i in rows], states, [room[i] for i in rows], [seeds[i] for i in rows], grammar
        )
        answers.update(zip(rows, made, strict=True))
    return [answers[i] for i in range(len(prompts))]


def _row_budget(i, prompt, task, grammar, starts, limits, max_length, max_new_tokens) -> int:
    """Tokens that the answer to prompt i may have; GenerationError when no legal answer is that short."""
    if task not in starts:
        raise GenerationError(f"prompt {i}: unknown task {task!r}; known tasks: {', '.join(starts)}")
    if prompt.ndim != 1 or not len(prompt):
        raise GenerationError(f"prompt {i}: shape {prompt.shape}; give a non-empty list of ids")
    wanted = max_new_tokens
    if wanted is None:
        wanted = sum(limits[kind][1] + 2 for kind in TASK_GRAMMARS[task].parts) + 1
    room = min(wanted, max_length - len(prompt))
    need = int(grammar.need(starts[task], 0))
    if need > room:
        raise GenerationError(
            f"prompt {i}: task {task!r} needs at least {need} new tokens, but only {max(room, 0)} are allowed "
            f"(prompt of {len(prompt)} tokens, max_length {max_length}, max_new_tokens {max_new_tokens}); "
            "shorten the prompt or raise max_new_tokens"
        )
    return room


def _answer_batch(model, prompts, states, room, seeds, grammar: Grammar) -> list[np.ndarray]:
    """Pads the batch to bucketed shapes, runs the compiled loop, and cuts the answers out."""
    rows = len(prompts)
    batch = 1 << (rows - 1).bit_length()
    spare = batch - rows  # rows that have ended before they begin
    lengths = np.array([len(p) for p in prompts] + [1] * spare, np.int32)
    tokens = np.zeros((batch, _bucketed(lengths.max())), np.int32)
    for row, prompt in zip(tokens, prompts, strict=False):
        row[: len(prompt)] = prompt
    graph, params = nnx.split(model)
    out, made = _loop(
        graph,
        params,
        jax.tree.map(jnp.asarray, grammar),
        tokens,
        lengths,
        np.array(states + [END] * spare, np.int32),
        np.array(room + [0] * spare, np.int32),
        np.array([s % (1 << 32) for s in seeds] + [0] * spare, np.uint32),
        steps=_bucketed(max(room)),
        cuts=bool((grammar.top_p < 1).any() or (grammar.top_k > 0).any()),
        penalties=bool((grammar.penalty != 1).any()),
    )
    out, made = np.asarray(out), np.asarray(made)
    return [out[i, : made[i]] for i in range(rows)]


def _bucketed(n) -> int:
    return -(-int(n) // BUCKET) * BUCKET


@functools.partial(jax.jit, static_argnames=("graph", "steps", "cuts", "penalties"))
def _loop(graph, params, grammar, tokens_BP, lengths_B, state_B, left_B, seeds_B, *, steps, cuts, penalties):
    """Prefill, then token after token until every row has ended: (ids [B, steps], how many [B])."""
    model = nnx.merge(graph, params)
    B, P = tokens_BP.shape
    rows = jnp.arange(B)
    hidden, cache = prefill(model, tokens_BP, lengths_B, P + steps)
    layers = unstack_layers(model)
    unembedding = model.unembedding().astype(model.config.dtype)

    def to_logits(hidden):
        return jnp.matmul(hidden, unembedding, preferred_element_type=jnp.float32)

    seen = None
    if penalties:
        padding = jnp.arange(P) >= lengths_B[:, None]
        places = jnp.where(padding, model.config.vocab_size, tokens_BP)
        seen = jnp.zeros((B, model.config.vocab_size), bool).at[rows[:, None], places].set(True, mode="drop")
    base_keys = jax.vmap(jax.random.key)(seeds_B)

    def running(carry):
        step, _, _, state, *_ = carry
        return (step < steps) & jnp.any(state != END)

    def one_token(carry):
        step, logits, cache, state, count, left, seen, out = carry
        keys = jax.vmap(jax.random.fold_in, (0, None))(base_keys, step)
        legal = grammar.legal_ids(state, count, left)
        token = pick(logits, legal, state, grammar, keys, seen, cuts=cuts)
        live = state != END
        out = out.at[:, step].set(jnp.where(live, token, 0))
        if seen is not None:
            seen = seen.at[rows, token].set(True)
        state, count = grammar.advance(state, count, token)
        hidden, cache = decode(model, layers, token[:, None], cache)
        return step + 1, to_logits(hidden[:, 0]), cache, state, count, left - live, seen, out

    zeros = jnp.zeros(B, jnp.int32)
    begin = (jnp.int32(0), to_logits(hidden), cache, state_B, zeros, left_B, seen, jnp.zeros((B, steps), jnp.int32))
    _, _, _, _, _, left, _, out = jax.lax.while_loop(running, one_token, begin)
    return out, left_B - left
