"""The rows that decode together, as they live on the device, and the compiled programs that change them.

`read_prompt` fills a free row; `make_tokens` makes a number of tokens for all rows; `clear_row` forgets one that was
broken off. Compiled (`programs`), all take the rows by donation, so there is one cache, updated in place. A row holds
a token that it has not read yet: the last of its prompt, then each new one. A step reads it, and picks the next.

A row may lead others, the branches of its guidance. They read the leader's image tokens, each after its own
prompt, and their logits are mixed into the leader's while it makes an image.

Letters: B rows, P padded prompt, N chunk, V vocabulary, S states, C classes, D width.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from ar_omni_jax.decoding.grammar import CLASSES, END, PENALTY_SCOPES, Grammar, Picking, has_class
from ar_omni_jax.decoding.guidance import mix_guided
from ar_omni_jax.decoding.request import MAX_STATES
from ar_omni_jax.decoding.sampling import pick
from ar_omni_jax.model.cache import KVCache, decode, empty_cache, logits_of, prefill
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.model.decode_weights import DecodeWeights

LOST = -1  # state of a row whose logits are no numbers, or whose pick was no legal id; whoever reads it ends the row
NEVER, IN_PROMPT = 0, 1  # values of `last_seen`; the answer's m-th token (from 0) leaves m + 2
BRANCH_BITS = sum(1 << CLASSES.index(name) for name in ("boi", "image", "eoi"))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """What changes from token to token: int32 [B] each, but `last_seen` [B, V].

    Attributes:
      token: not yet read. state, count: of the grammar. left: tokens that the row may still have. made: tokens
        of the answer so far. part_start: `made` at the first token of the present part.
      last_seen: when each id last stood in the row; see NEVER and IN_PROMPT.
    """

    token: jax.Array
    state: jax.Array
    count: jax.Array
    left: jax.Array
    made: jax.Array
    part_start: jax.Array
    last_seen: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Settings:
    """What stays while a request is answered: one a row.

    Attributes:
      grammar: [B, S, ...]. seed: uint32 [B].
      leader: int32 [B], the row whose tokens this one reads; itself but for branches.
      unconditional, image_only: int32 [B], the branches of a row; itself where it has none.
      base: int32 [B], tokens of a branch's prompt. restarts: bool [B], branches that forget, when an image
        begins, the images before it.
    """

    grammar: Grammar
    seed: jax.Array
    leader: jax.Array
    unconditional: jax.Array
    image_only: jax.Array
    base: jax.Array
    restarts: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """All of it; `class_of`: int32 [V], the class of each id."""

    cache: KVCache
    progress: Progress
    settings: Settings
    class_of: jax.Array


def empty_rows(config: TransformerConfig, class_of: np.ndarray, rows: int, capacity: int) -> Rows:
    """Rows that have ended, with room for `capacity` tokens each."""
    zeros = functools.partial(jnp.zeros, rows, jnp.int32)
    progress = Progress(*(zeros() for _ in range(6)), last_seen=jnp.zeros((rows, len(class_of)), jnp.int32))
    return Rows(empty_cache(config, rows, capacity), progress, empty_settings(rows), jnp.asarray(class_of))


def empty_settings(rows: int) -> Settings:
    """Settings of rows that answer nothing: no id is legal, no row leads another."""

    def floats():
        return jnp.ones((rows, MAX_STATES), jnp.float32)

    def ints(*tail):
        return jnp.zeros((rows, MAX_STATES, *tail), jnp.int32)

    picking = Picking(ints().astype(bool), floats(), ints(), floats(), floats(), floats(), ints(), floats(), floats())
    itself = [jnp.arange(rows, dtype=jnp.int32) for _ in range(3)]
    grammar = Grammar(ints(len(CLASSES)), ints(), ints(), ints(), ints(), picking)
    nothing = jnp.zeros(rows, jnp.int32)
    return Settings(grammar, nothing.astype(jnp.uint32), *itself, nothing, nothing.astype(bool))


def read_prompt(
    weights: DecodeWeights, rows: Rows, slot, prompt_P, length, last, settings: Settings, start, left, *, config
) -> Rows:
    """Reads a prompt into row `slot`.

    Args:
      prompt_P: int32, its first `length` ids, then padding. last: the id after them, which the first step reads.
      settings: of this row, without the row axis. start: grammar state. left: tokens that the answer may have.
    """
    _, made = prefill(weights, config, prompt_P[None], length[None], len(prompt_P))
    cache = KVCache(
        *(
            tuple(jax.lax.dynamic_update_slice(old, new, (slot, 0, 0, 0)) for old, new in zip(*pair, strict=True))
            for pair in ((rows.cache.keys, made.keys), (rows.cache.values, made.values))
        ),
        rows.cache.lengths.at[slot].set(length),
    )
    places = jnp.arange(len(prompt_P))
    ids = jnp.where(places < length, prompt_P, last)
    seen = jnp.full(len(rows.class_of), NEVER, jnp.int32).at[ids].set(IN_PROMPT)
    fresh = Progress(last, start, count=0, left=left, made=0, part_start=0, last_seen=seen)
    progress, settings = jax.tree.map(
        lambda old, new: old.at[slot].set(jnp.asarray(new, old.dtype)),
        (rows.progress, rows.settings),
        (fresh, settings),
    )
    return Rows(cache, progress, settings, rows.class_of)


def clear_row(rows: Rows, slot) -> Rows:
    """Zeros for keys and values of row `slot`. What stands beyond a row's length is masked by an addition to its
    scores, which NaN survives: a row that may hold some must not leave them to the next request."""

    def zeros(old):
        return jax.lax.dynamic_update_slice(old, jnp.zeros_like(old, shape=(1, *old.shape[1:])), (slot, 0, 0, 0))

    cache = rows.cache
    keys, values = (tuple(map(zeros, arrays)) for arrays in (cache.keys, cache.values))
    return dataclasses.replace(rows, cache=dataclasses.replace(cache, keys=keys, values=values))


def resize(rows: Rows, *, room: int) -> Rows:
    """The same rows with room for `room` tokens each, more or less than before."""
    cache = rows.cache
    change = room - cache.capacity

    def sized(old):
        return jnp.pad(old, ((0, 0), (0, 0), (0, change), (0, 0))) if change > 0 else old[:, :, :room]

    keys, values = (tuple(map(sized, arrays)) for arrays in (cache.keys, cache.values))
    return dataclasses.replace(rows, cache=dataclasses.replace(cache, keys=keys, values=values))


def make_tokens(weights: DecodeWeights, rows: Rows, keep_B, steps, until_one_ends, *, config, width: int):
    """Makes up to `steps` tokens of every row.

    Args:
      keep_B: bool, rows that may go on; the others end now, without a token.
      steps: int32, at most `width`. until_one_ends: bool, stop early so that a waiting request can have the row.
    Returns:
      (rows, ids [width, B], tokens made since admission [B], grammar state [B]: END, LOST or on its way). A row's
      new ids stand in the first of its column.
    """
    progress = rows.progress
    state = jnp.where(keep_B, progress.state, END)
    progress = dataclasses.replace(progress, state=state)
    living = jnp.sum(state != END)

    def running(carry):
        step, _, progress, _ = carry
        now = jnp.sum(progress.state != END)
        return (step < steps) & (now > 0) & ~(until_one_ends & (now < living))

    def one(carry):
        step, cache, progress, out = carry
        cache, progress, token = _step(weights, config, rows.settings, rows.class_of, cache, progress)
        return step + 1, cache, progress, jax.lax.dynamic_update_slice(out, token[None], (step, 0))

    out = jnp.zeros((width, len(keep_B)), jnp.int32)
    single = len(keep_B) == 1
    cache = rows.cache.squeezed() if single else rows.cache
    _, cache, progress, out = jax.lax.while_loop(running, one, (jnp.int32(0), cache, progress, out))
    cache = cache.unsqueezed() if single else cache
    return Rows(cache, progress, rows.settings, rows.class_of), out, progress.made, progress.state


def _step(weights, config, settings: Settings, class_of, cache: KVCache, progress: Progress):
    """Reads each row's token and picks its next: (cache, progress, tokens [B])."""
    live = progress.state != END
    tokens = progress.token[settings.leader]
    cache, reads = _branches_follow(settings, class_of, cache, progress, tokens, live)
    hidden, cache = decode(weights, config, tokens[:, None], cache, reads)
    logits = logits_of(weights, hidden[:, 0])

    by_row = functools.partial(jax.vmap, in_axes=(0, 0, 0, 0))
    bits = by_row(Grammar.legal_bits)(settings.grammar, progress.state, progress.count, progress.left)
    picking = jax.vmap(Picking.at)(settings.grammar.picking, progress.state)
    guided = live & ((picking.text_scale != 1) | (picking.image_scale != 1))
    mix = functools.partial(_mixed, settings=settings, picking=picking, guided_B=guided)
    logits = jax.lax.cond(jnp.any(guided), mix, lambda full: full, logits)

    def seen():
        row, answer = (picking.penalty_scope == PENALTY_SCOPES.index(scope) for scope in ("row", "answer"))
        first = jnp.where(row, IN_PROMPT, jnp.where(answer, 2, progress.part_start + 2))
        return progress.last_seen >= first[:, None]

    def keys():
        return jax.vmap(jax.random.fold_in)(jax.vmap(jax.random.key)(settings.seed), progress.made)

    new = pick(logits, has_class(bits, class_of), picking, seen, keys, live)
    picked = class_of[new]
    state, count = by_row(Grammar.advance)(settings.grammar, progress.state, progress.count, picked)
    sound = (progress.state != LOST) & ((jnp.right_shift(bits, picked) & 1) != 0)
    sound &= jnp.isfinite(jnp.take_along_axis(logits, new[:, None], axis=1)[:, 0])
    state = jnp.where(live & ~sound, LOST, state)
    one = live.astype(jnp.int32)
    everyone = jnp.arange(len(new))
    marks = jnp.where(live, progress.made + 2, progress.last_seen[everyone, new])
    return (
        cache,
        Progress(
            token=jnp.where(live, new, progress.token),
            state=state,
            count=count,
            left=progress.left - one,
            made=progress.made + one,
            part_start=jnp.where(state != progress.state, progress.made, progress.part_start),
            last_seen=progress.last_seen.at[everyone, new].set(marks),
        ),
        new,
    )


def _branches_follow(settings: Settings, class_of, cache: KVCache, progress: Progress, tokens, live):
    """(cache whose restarting branches stand at their own prompt, bool [B]: rows that read their token)."""
    token_class = class_of[tokens]
    branch = settings.leader != jnp.arange(len(tokens))
    of_image = (jnp.right_shift(BRANCH_BITS, token_class) & 1).astype(bool) & (progress.made[settings.leader] > 0)
    begins = branch & settings.restarts & (token_class == CLASSES.index("boi"))
    lengths = jnp.where(begins, settings.base, cache.lengths)
    return dataclasses.replace(cache, lengths=lengths), live[settings.leader] & (~branch | of_image)


def _mixed(logits_BV, settings: Settings, picking: Picking, guided_B):
    mixed = mix_guided(
        logits_BV,
        logits_BV[settings.image_only],
        logits_BV[settings.unconditional],
        text_scale=picking.text_scale[:, None],
        image_scale=picking.image_scale[:, None],
    )
    return jnp.where(guided_B[:, None], mixed, logits_BV)


# One thread; no products by the library that XLA prefers for large ones (a tenth slower for 4 rows); vectors as wide as
# the core has; and no order of operations that is meant to keep several threads busy.
SINGLE_THREAD = {
    "xla_cpu_multi_thread_eigen": False,
    "xla_cpu_experimental_ynn_fusion_type": "",
    "xla_cpu_prefer_vector_width": 512,
    "xla_cpu_enable_concurrency_optimized_scheduler": False,
}


@functools.cache
def known_options() -> dict:
    """Those of SINGLE_THREAD that this version's compiler knows: they come and go."""

    def known(name, value):
        try:
            jax.jit(lambda x: x + 1, compiler_options={name: value}).lower(0.0).compile()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: value for name, value in SINGLE_THREAD.items() if known(name, value)}


@functools.cache
def programs(shardings: tuple | None = None, single_thread: bool = False):
    """(read_prompt, make_tokens, clear_row, resize), compiled once for each set of shapes.

    Args:
      shardings: on a mesh, (structure, leaves) of the rows' shardings, which the results keep; None without one.
      single_thread: `make_tokens` for one core of a CPU.
    """
    places = shardings and jax.tree.unflatten(*shardings)
    options = {"donate_argnames": ("rows",)}
    return (
        jax.jit(read_prompt, static_argnames=("config",), out_shardings=places, **options),
        jax.jit(
            make_tokens,
            static_argnames=("config", "width"),
            out_shardings=places and (places, None, None, None),
            compiler_options=known_options() if single_thread else None,
            **options,
        ),
        jax.jit(clear_row, out_shardings=places, **options),
        jax.jit(resize, static_argnames=("room",)),
    )
