"""What is asked of the engine, what it answers, and the check that a request can be answered at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from ar_omni_jax.decoding.grammar import (
    DECLARATIONS,
    Declaration,
    Grammar,
    ModeSwitch,
    TaskGrammar,
    compile_grammar,
    longest_answer,
    pad_states,
)
from ar_omni_jax.decoding.guidance import Guidance, branches
from ar_omni_jax.decoding.strategy import Strategy, strategy_for
from ar_omni_jax.vocabulary import JointVocabulary

MAX_STATES = 16  # of one request's machine; the most of a built-in task are 8


class GenerationError(ValueError):
    """A request that cannot be answered; the message names the prompt and the remedy."""


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """One answer to make.

    Attributes:
      prompt: int32 ids, ending where the model is to go on (`templates.prompt`).
      task: a name of `grammar.DECLARATIONS`, or a declaration of one's own.
      seed: of the random draws. An answer depends on its own prompt, seed and settings alone.
      strategies: {part kind or (task, part kind): Strategy}, over the defaults of `decoding/strategy.py`.
      budgets: {"text": n, "speech": n}, the largest number of ids of one such part.
      max_new_tokens: of the answer, end marker included, the prompt not. Given, the answer is sure to have that
        room (or the request is refused); None = what the task's parts may need, as far as the context allows.
      guidance: of image parts whose strategy names none.
      id: the caller's name for it; used in messages.
    """

    prompt: np.ndarray
    task: str | Declaration
    seed: int = 0
    strategies: Mapping | None = None
    budgets: Mapping[str, int] | None = None
    max_new_tokens: int | None = None
    guidance: Guidance | None = None
    id: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Event:
    """News of one request.

    Attributes:
      index: its position among the submitted requests.
      tokens: int32 ids that are new since its last event; may be empty.
      done: whether it is the last event.
      error: why there is no answer, or no more of it; None when all is well.
    """

    index: int
    tokens: np.ndarray
    done: bool
    error: Exception | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A request that can be answered, as the device needs it.

    Attributes: prompt, int32. branches: prompts of guidance rows (none, unconditional, or also image-only).
      grammar: of MAX_STATES states; start: where it begins. left: tokens the answer may have.
    """

    prompt: np.ndarray
    branches: list[np.ndarray]
    grammar: Grammar
    start: int
    left: int
    seed: int


def plan(request: Request, name: str, vocabulary: JointVocabulary, capacity: int) -> Plan:
    """Checks a request and compiles its machine.

    Args:
      name: what messages call it. capacity: tokens that a row can hold, prompt and answer.
    Raises a ValueError (GenerationError, VocabularyError, StrategyError, GuidanceError) in words.
    """
    task, declared = _declaration(request, name)
    prompt = _ids(request.prompt, name, vocabulary)
    seed = _settings(request, name)
    grammar, starts = compile_grammar(
        vocabulary,
        tasks={task: declared},
        strategies=request.strategies,
        budgets=request.budgets,
        guidance=request.guidance,
    )
    if len(grammar.least) > MAX_STATES:
        raise GenerationError(f"{name}: task {task!r} has {len(grammar.least)} states, more than {MAX_STATES}")
    extra = _branch_prompts(request, name, task, grammar, prompt, vocabulary)
    longest = max(prompt, *extra, key=len) if extra else prompt  # every row of the answer must hold its tokens
    left = _room(request, name, task, declared, longest, int(grammar.need(starts[task], 0)), vocabulary, capacity)
    return Plan(prompt, extra, pad_states(grammar, MAX_STATES), starts[task], left, seed)


def _declaration(request: Request, name: str) -> tuple[str, Declaration]:
    if isinstance(request.task, TaskGrammar | ModeSwitch):
        return "custom", request.task
    if not isinstance(request.task, str) or request.task not in DECLARATIONS:
        raise GenerationError(f"{name}: unknown task {request.task!r}; known tasks: {', '.join(DECLARATIONS)}")
    return request.task, DECLARATIONS[request.task]


def _settings(request: Request, name: str) -> int:
    """The seed as the device has it; GenerationError for settings of a wrong type, whoever sent them."""
    if not isinstance(request.seed, int | np.integer) or isinstance(request.seed, bool):
        raise GenerationError(f"{name}: seed {request.seed!r} is not an integer")
    for key, strategy in (request.strategies or {}).items():
        if not isinstance(strategy, Strategy):
            raise GenerationError(f"{name}: strategies[{key!r}] is a {type(strategy).__name__}; give a Strategy")
    if request.guidance is not None:
        if not isinstance(request.guidance, Guidance):
            raise GenerationError(f"{name}: guidance is a {type(request.guidance).__name__}; give a Guidance")
        request.guidance.check()
    return int(request.seed) % (1 << 32)


def _ids(prompt, name: str, vocabulary: JointVocabulary) -> np.ndarray:
    prompt = np.asarray(prompt)
    if prompt.ndim != 1 or not len(prompt):
        raise GenerationError(f"{name}: shape {prompt.shape}; give a non-empty list of ids")
    if not np.issubdtype(prompt.dtype, np.integer):
        raise GenerationError(f"{name}: ids of type {prompt.dtype}; give integers")
    return vocabulary.check_ids(prompt, name).astype(np.int32)


def _room(request, name, task, declared, prompt, need, vocabulary, capacity) -> int:
    """Tokens that the answer may have after `prompt`, the longest that it is made from."""
    wanted = request.max_new_tokens
    if wanted is None and isinstance(declared, ModeSwitch):
        wanted = capacity
    elif wanted is None:
        wanted = longest_answer(declared, vocabulary, request.budgets)
    elif wanted >= need and len(prompt) + wanted > capacity:
        raise GenerationError(
            f"{name}: prompt of {len(prompt)} tokens and max_new_tokens {wanted} exceed max_length {capacity}; "
            "shorten the prompt (drop whole turns) or lower max_new_tokens"
        )
    room = min(int(wanted), capacity - len(prompt))
    if need > room:
        raise GenerationError(
            f"{name}: task {task!r} needs at least {need} new tokens, but only {max(room, 0)} are allowed "
            f"(prompt of {len(prompt)} tokens, max_length {capacity}, max_new_tokens {request.max_new_tokens}); "
            "shorten the prompt or raise max_new_tokens"
        )
    return room


def _branch_prompts(request, name, task: str, grammar: Grammar, prompt, vocabulary) -> list[np.ndarray]:
    """Prompts of the extra rows that guidance needs; none without guidance in any state."""
    picking = grammar.picking
    if not ((picking.text_scale != 1) | (picking.image_scale != 1)).any():
        return []
    used = strategy_for(request.strategies, task, "image").guidance or request.guidance
    used.check()
    return [_ids(ids, f"{name}, guidance", vocabulary) for ids in branches(used, prompt, vocabulary)]
