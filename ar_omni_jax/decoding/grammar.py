"""Which ids are legal next: a finite-state machine over the joint vocabulary, one start state a task.

A task's answer is a walk over parts (text, image, speech), then an end marker:

    text    one or more text ids
    image   <boi>, exactly rows * columns codes, <eoi>
    speech  <boa>, one or more codes, <eoa>

The machine sees ids by class (text, image, speech, each marker). Each state says which classes lead where; a
state that stays counts its tokens, and may be left only between its least and its largest count. A token is
also legal only if the shortest legal ending after it still fits what is left of the row's budget: no output
is ever cut off. Each state also says how its token is picked. A task is a small declaration (`TaskGrammar`,
`ModeSwitch`); its machine is a few small arrays, so each row of a batch can have its own.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ar_omni_jax.decoding.guidance import Guidance
from ar_omni_jax.decoding.strategy import (
    PART_KINDS,
    PENALTY_SCOPES,
    ModeSwitch,
    Strategy,
    StrategyError,
    strategy_for,
)
from ar_omni_jax.documents import TASKS
from ar_omni_jax.vocabulary import JointVocabulary, Modality

# Classes of ids. Everything no answer may contain (<pad>, <bos>, <eoh>, reserved ids ...) is OTHER.
CLASSES = ("text", "image", "speech", "boi", "eoi", "boa", "eoa", "eos", "eom", "ins", "res", "other")
OPENERS = {"text": "text", "image": "boi", "speech": "boa"}  # class of the token that begins a part
CLOSERS = {"image": "eoi", "speech": "eoa"}
ENDS = ("eos", "eom")  # of a whole answer

# Largest number of tokens of a part unless the caller says otherwise (speech: 15 s at 40 codes a second).
DEFAULT_BUDGETS = {"text": 128, "speech": 600}
UNREACHABLE = 1 << 20


@dataclasses.dataclass(frozen=True)
class TaskGrammar:
    """The answer of one task: parts in this order and once each, or (`any_order`) any of them, in any order
    and number, at least one, no two texts in a row; then the marker `end`."""

    parts: tuple[str, ...]
    end: str
    any_order: bool = False


TASK_GRAMMARS = {
    "text": TaskGrammar(("text",), "eos"),
    "asr": TaskGrammar(("text",), "eos"),
    "caption": TaskGrammar(("text",), "eos"),
    "tts": TaskGrammar(("speech",), "eos"),
    "t2i": TaskGrammar(("image",), "eos"),
    "speech_to_image": TaskGrammar(("image",), "eos"),
    "image_to_speech": TaskGrammar(("speech",), "eos"),
    "chat_speech": TaskGrammar(("text",), "eom"),
    "chat_image": TaskGrammar(("text", "image"), "eom"),
    "chat": TaskGrammar(PART_KINDS, "eom", any_order=True),
}
assert set(TASK_GRAMMARS) == set(TASKS)

Declaration = TaskGrammar | ModeSwitch

# What a request may name: the tasks, and the reference's way of decoding with its bit clear or set at first.
DECLARATIONS: dict[str, Declaration] = {
    **TASK_GRAMMARS,
    "reference": ModeSwitch(),
    "reference_greedy": ModeSwitch(greedy_first=True),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Picking:
    """How tokens are picked, a state: arrays [S] (or [B], of the rows' states).

    Attributes: as in `Strategy`; `penalty_scope` is an index into PENALTY_SCOPES. text_scale, image_scale:
      those of the guidance in effect, 1 = none.
    """

    greedy: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    penalty: jax.Array
    penalty_scope: jax.Array
    text_scale: jax.Array
    image_scale: jax.Array

    def at(self, state) -> Picking:
        """The settings of the given states."""
        return jax.tree.map(lambda column: column[state], self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Grammar:
    """The compiled machine: S states, C classes. State 0 is the end.

    Attributes:
      next_state: int32 [S, C], -1 where the class is illegal. A state that leads to itself counts its tokens.
      least, largest: int32 [S], the count from which the state may be left, and up to which it may stay.
      entry_count: int32 [S], the count on arrival (1 where the token that enters is itself counted).
      exit_need: int32 [S], tokens of the shortest way to the end once the count suffices.
      picking: how the token that leaves each state is picked.
    """

    next_state: jax.Array
    least: jax.Array
    largest: jax.Array
    entry_count: jax.Array
    exit_need: jax.Array
    picking: Picking

    def need(self, state, count):
        """Least number of further tokens to the end of the answer from `state` with `count` tokens in it."""
        return jnp.maximum(self.least[state] - count, 0) + self.exit_need[state]

    def legal_classes(self, state, count, left):
        """bool [..., C]: the classes of the next token, when `left` tokens remain to the row, that one
        included."""
        target = self.next_state[state]
        state, count, left = state[..., None], count[..., None], left[..., None]
        stays = target == state
        in_bounds = jnp.where(stays, count < self.largest[state], count >= self.least[state])
        new_count = jnp.where(stays, count + 1, self.entry_count[target])
        return (target >= 0) & in_bounds & (self.need(target, new_count) < left)

    def legal_bits(self, state, count, left):
        """int32 [...]: `legal_classes` as bits, class c at bit c."""
        bits = jnp.left_shift(1, jnp.arange(len(CLASSES), dtype=jnp.int32))
        return jnp.sum(jnp.where(self.legal_classes(state, count, left), bits, 0), axis=-1)

    def advance(self, state, count, token_class):
        """(state, count) after legal tokens of those classes; the end state stays what it is."""
        target = self.next_state[state, token_class]
        new_count = jnp.where(target == state, count + 1, self.entry_count[target])
        done = state == END
        return jnp.where(done, state, target), jnp.where(done, count, new_count)


def has_class(bits_B, class_of_V):
    """bool [B, V]: the ids whose class is among those of `Grammar.legal_bits`."""
    return (bits_B[:, None] & jnp.left_shift(1, class_of_V)) != 0


END = 0


class _Machine:
    """Collects states; `edges[s]` is {class name: target}."""

    def __init__(self):
        self.edges: list[dict[str, int]] = []
        self.least: list[int] = []
        self.largest: list[int] = []
        self.entry: list[int] = []
        self.strategies: list[Strategy] = []

    def state(self, strategy: Strategy, least: int = 0, largest: int = 0, entry: int = 0) -> int:
        self.edges.append({})
        self.least.append(least)
        self.largest.append(largest)
        self.entry.append(entry)
        self.strategies.append(strategy)
        return len(self.edges) - 1

    def exit_needs(self) -> list[int]:
        """Shortest number of tokens from each state, its count satisfied, to the end (Bellman-Ford)."""
        need = [0] + [UNREACHABLE] * (len(self.edges) - 1)
        for _ in self.edges:
            for s, edges in enumerate(self.edges):
                for target in edges.values():
                    if target != s:
                        inside = max(self.least[target] - self.entry[target], 0)
                        need[s] = min(need[s], 1 + inside + need[target])
        return need


def _add_switch(machine: _Machine, switch: ModeSwitch) -> int:
    """Adds the two states of a `ModeSwitch`; returns its start."""
    unknown = sorted({*switch.greedy_after, *switch.sample_after, *switch.ends} - set(CLASSES))
    if unknown or not switch.ends:
        known = ", ".join(CLASSES)
        raise StrategyError(f"ModeSwitch: {unknown or 'no'} markers; it may name {known}, and needs an end")
    # Its states are not parts, and guidance is for image parts only.
    unguided = (dataclasses.replace(s, guidance=None) for s in (switch.greedy, switch.sample))
    greedy, sample = (machine.state(s, largest=UNREACHABLE) for s in unguided)
    for state in (greedy, sample):
        machine.edges[state] = dict.fromkeys(CLASSES, state)
        machine.edges[state] |= dict.fromkeys(switch.greedy_after, greedy)
        machine.edges[state] |= dict.fromkeys(switch.sample_after, sample)
        machine.edges[state] |= dict.fromkeys(switch.ends, END)
    return greedy if switch.greedy_first else sample


def _check_task(task: str, grammar: TaskGrammar) -> None:
    """StrategyError for a declaration whose answers would not parse as what it says."""
    parts, where = grammar.parts, f"task {task!r}"
    if not parts or not set(parts) <= set(PART_KINDS):
        raise StrategyError(f"{where}: parts {parts!r}; give at least one of {', '.join(PART_KINDS)}")
    if grammar.end not in ENDS:
        raise StrategyError(f"{where}: ends with {grammar.end!r}; use {' or '.join(ENDS)}")
    if ("text", "text") in itertools.pairwise(parts):
        raise StrategyError(f"{where}: parts {parts!r} have two texts in a row, which nobody could tell from one")
    if grammar.any_order and len(set(parts)) < len(parts):
        raise StrategyError(f"{where}: parts {parts!r} in any order may come again anyway; name each once")


def _add_task(machine: _Machine, task: str, grammar: TaskGrammar, limits: Mapping, strategies, guidance) -> int:
    """Adds the states of one task; returns its start."""
    _check_task(task, grammar)

    def strategy(kind, guided=False):
        found = strategy_for(strategies, task, kind)
        # Guidance mixes the logits of image codes only: its branches have no other tokens.
        return dataclasses.replace(found, guidance=(found.guidance or guidance) if guided else None)

    start = machine.state(strategy(grammar.parts[0]))
    insides, afters = [], []
    for kind in grammar.parts:
        least, largest = limits[kind]
        inside = machine.state(strategy(kind, kind == "image"), least, largest, entry=int(kind == "text"))
        machine.edges[inside][kind] = inside
        after = inside
        if kind in CLOSERS:
            after = machine.state(strategy("text" if "text" in grammar.parts else kind))
            machine.edges[inside][CLOSERS[kind]] = after
        insides.append(inside)
        afters.append(after)
    count = len(grammar.parts)
    for i in range(-1, count):
        source = afters[i] if i >= 0 else start
        following = range(count) if grammar.any_order else range(i + 1, min(i + 2, count))
        for j in following:
            if insides[j] != source:
                machine.edges[source][OPENERS[grammar.parts[j]]] = insides[j]
        if i >= 0 and (grammar.any_order or i == count - 1):
            machine.edges[source][grammar.end] = END
    return start


@functools.lru_cache(maxsize=8)
def class_table(vocabulary: JointVocabulary) -> np.ndarray:
    """int32 [V]: the index into CLASSES of each id."""
    table = np.full(vocabulary.size, CLASSES.index("other"), np.int32)
    for modality in (Modality.TEXT, Modality.IMAGE, Modality.SPEECH):
        table[vocabulary.mask(modality)] = CLASSES.index(modality.name.lower())
    for name in CLASSES:
        if name in vocabulary.markers:
            table[vocabulary.marker(name)] = CLASSES.index(name)
    return table


def part_limits(vocabulary: JointVocabulary, budgets: Mapping[str, int] | None) -> dict[str, tuple[int, int]]:
    """(least, largest) number of ids of each part; `budgets` overrides the largest of text and speech."""
    budgets = dict(budgets or {})
    for kind, value in budgets.items():
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        if kind not in DEFAULT_BUDGETS or not whole or value < 1:
            raise StrategyError(f"budgets[{kind!r}] = {value!r}: give positive integers for text and speech only")
    limits = {kind: (1, min(int(value), UNREACHABLE)) for kind, value in (DEFAULT_BUDGETS | budgets).items()}
    return limits | {"image": (vocabulary.image_length,) * 2}


def longest_answer(grammar: TaskGrammar, vocabulary: JointVocabulary, budgets: Mapping[str, int] | None) -> int:
    """Tokens of the longest answer in which each part comes once: codes, their markers, and the end marker."""
    limits = part_limits(vocabulary, budgets)
    return sum(limits[kind][1] + 2 for kind in grammar.parts) + 1


def compile_grammar(
    vocabulary: JointVocabulary,
    *,
    tasks: Mapping[str, Declaration] | None = None,
    strategies: Mapping | None = None,
    budgets: Mapping[str, int] | None = None,
    guidance: Guidance | None = None,
) -> tuple[Grammar, dict[str, int]]:
    """The machine of some tasks (None: of all in DECLARATIONS) in NumPy arrays, and the start state of each.

    Args:
      strategies: {part kind or (task, part kind): Strategy} over DEFAULT_STRATEGIES.
      budgets: {"text": n, "speech": n}, the largest number of ids of one such part.
      guidance: of image parts whose strategy names none.
    """
    given = (tasks or DECLARATIONS, strategies or {}, budgets or {})
    return _compile(vocabulary, *(tuple(sorted(g.items(), key=str)) for g in given), guidance)


@functools.lru_cache(maxsize=256)
def _compile(vocabulary, tasks, strategies, budgets, guidance):
    limits, strategies = part_limits(vocabulary, dict(budgets)), dict(strategies)
    machine = _Machine()
    machine.state(Strategy(greedy=True))
    starts = {}
    for task, declared in tasks:
        if isinstance(declared, ModeSwitch):
            starts[task] = _add_switch(machine, declared)
        else:
            starts[task] = _add_task(machine, task, declared, limits, strategies, guidance)
    table = np.full((len(machine.edges), len(CLASSES)), -1, np.int32)
    for s, edges in enumerate(machine.edges):
        for name, target in edges.items():
            table[s, CLASSES.index(name)] = target
    counts = (np.array(x, np.int32) for x in (machine.least, machine.largest, machine.entry, machine.exit_needs()))
    return Grammar(table, *counts, picking=_picking(machine.strategies)), starts


def _picking(strategies: list[Strategy]) -> Picking:
    none = Guidance(1.0, 1.0)

    def column(values, dtype):
        return np.array(list(values), dtype)

    return Picking(
        greedy=column((s.greedy for s in strategies), bool),
        temperature=column((s.temperature for s in strategies), np.float32),
        top_k=column((s.top_k for s in strategies), np.int32),
        top_p=column((s.top_p for s in strategies), np.float32),
        min_p=column((s.min_p for s in strategies), np.float32),
        penalty=column((s.repetition_penalty for s in strategies), np.float32),
        penalty_scope=column((PENALTY_SCOPES.index(s.penalty_scope) for s in strategies), np.int32),
        text_scale=column(((s.guidance or none).text_scale for s in strategies), np.float32),
        image_scale=column(((s.guidance or none).image_scale for s in strategies), np.float32),
    )


def pad_states(grammar: Grammar, states: int) -> Grammar:
    """The same machine with arrays of `states` states; none leads to the new ones."""
    return jax.tree.map(lambda a: np.concatenate([a, np.repeat(a[:1], states - len(a), axis=0)]), grammar)
