"""Which ids are legal next: a finite-state machine over the joint vocabulary, one start state a task.

A task's answer is a walk over parts (text, image, speech), then an end marker:

    text    one or more text ids
    image   <boi>, exactly rows * columns codes, <eoi>
    speech  <boa>, one or more codes, <eoa>

The machine sees ids by class (text, image, speech, each marker). Each state says which classes lead where; a
state that stays counts its tokens, and may be left only between its least and its largest count. A token is
also legal only if the shortest legal ending after it still fits what is left of the row's budget: no output
is ever cut off. Tables of all tasks form one machine, so rows of one batch may be in any task and any state.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from ar_omni_jax.decoding.strategy import PART_KINDS, Strategy, StrategyError, strategy_for
from ar_omni_jax.documents import TASKS
from ar_omni_jax.vocabulary import JointVocabulary, Modality

# Classes of ids. Everything no answer may contain (<pad>, <bos>, <eoh>, reserved ids ...) is OTHER.
CLASSES = ("text", "image", "speech", "boi", "eoi", "boa", "eoa", "eos", "eom", "other")
OPENERS = {"text": "text", "image": "boi", "speech": "boa"}  # class of the token that begins a part
CLOSERS = {"image": "eoi", "speech": "eoa"}

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Grammar:
    """The compiled machine: S states, C classes, V ids. State 0 is the end.

    Attributes:
      class_of: int32 [V], index into CLASSES.
      next_state: int32 [S, C], -1 where the class is illegal. A state that leads to itself counts its tokens.
      least, largest: int32 [S], the count from which the state may be left, and up to which it may stay.
      entry_count: int32 [S], the count on arrival (1 where the token that enters is itself counted).
      exit_need: int32 [S], tokens of the shortest way to the end once the count suffices.
      greedy, temperature, top_k, top_p, penalty: [S], the strategy for the token picked in the state.
    """

    class_of: jax.Array
    next_state: jax.Array
    least: jax.Array
    largest: jax.Array
    entry_count: jax.Array
    exit_need: jax.Array
    greedy: jax.Array
    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    penalty: jax.Array

    def need(self, state, count):
        """Least number of further tokens to the end of the answer from `state` with `count` tokens in it."""
        return jnp.maximum(self.least[state] - count, 0) + self.exit_need[state]

    def legal_classes(self, state_B, count_B, left_B):
        """bool [B, C]: the classes of the next token, when `left_B` tokens remain to the row, that one
        included."""
        target = self.next_state[state_B]
        stays = target == state_B[:, None]
        count = count_B[:, None]
        in_bounds = jnp.where(stays, count < self.largest[state_B][:, None], count >= self.least[state_B][:, None])
        new_count = jnp.where(stays, count + 1, self.entry_count[target])
        return (target >= 0) & in_bounds & (self.need(target, new_count) < left_B[:, None])

    def legal_ids(self, state_B, count_B, left_B):
        """bool [B, V]: `legal_classes` spread over the vocabulary."""
        return jnp.take(self.legal_classes(state_B, count_B, left_B), self.class_of, axis=1)

    def advance(self, state_B, count_B, tokens_B):
        """(state, count) after legal tokens; the end state stays what it is."""
        target = self.next_state[state_B, self.class_of[tokens_B]]
        count = jnp.where(target == state_B, count_B + 1, self.entry_count[target])
        done = state_B == END
        return jnp.where(done, state_B, target), jnp.where(done, count_B, count)


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


def _add_task(machine: _Machine, task: str, grammar: TaskGrammar, limits: Mapping, strategies) -> int:
    """Adds the states of one task; returns its start."""

    def strategy(kind):
        return strategy_for(strategies, task, kind)

    start = machine.state(strategy(grammar.parts[0]))
    insides, afters = [], []
    for kind in grammar.parts:
        least, largest = limits[kind]
        inside = machine.state(strategy(kind), least, largest, entry=int(kind == "text"))
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


def _class_table(vocabulary: JointVocabulary) -> np.ndarray:
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
        if kind not in DEFAULT_BUDGETS or value < 1:
            raise StrategyError(f"budgets[{kind!r}] = {value!r}: give positive numbers for text and speech only")
    limits = {kind: (1, int(value)) for kind, value in (DEFAULT_BUDGETS | budgets).items()}
    return limits | {"image": (vocabulary.image_length,) * 2}


def compile_grammar(
    vocabulary: JointVocabulary, *, strategies: Mapping | None = None, budgets: Mapping[str, int] | None = None
) -> tuple[Grammar, dict[str, int]]:
    """The machine of all tasks, and the start state of each.

    Args:
      strategies: {part kind or (task, part kind): Strategy} over DEFAULT_STRATEGIES.
      budgets: {"text": n, "speech": n}, the largest number of ids of one such part.
    """
    return _compile(vocabulary, tuple(sorted((strategies or {}).items(), key=str)), tuple((budgets or {}).items()))


@functools.lru_cache(maxsize=32)
def _compile(vocabulary, strategies, budgets):
    limits, strategies = part_limits(vocabulary, dict(budgets)), dict(strategies)
    machine = _Machine()
    machine.state(Strategy(greedy=True))
    starts = {task: _add_task(machine, task, g, limits, strategies) for task, g in TASK_GRAMMARS.items()}
    table = np.full((len(machine.edges), len(CLASSES)), -1, np.int32)
    for s, edges in enumerate(machine.edges):
        for name, target in edges.items():
            table[s, CLASSES.index(name)] = target

    def column(field, dtype):
        return np.array([getattr(s, field) for s in machine.strategies], dtype)

    counts = (np.array(x, np.int32) for x in (machine.least, machine.largest, machine.entry, machine.exit_needs()))
    grammar = Grammar(
        _class_table(vocabulary),
        table,
        *counts,
        greedy=column("greedy", bool),
        temperature=column("temperature", np.float32),
        top_k=column("top_k", np.int32),
        top_p=column("top_p", np.float32),
        penalty=column("repetition_penalty", np.float32),
    )
    return grammar, starts
