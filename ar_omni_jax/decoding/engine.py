"""Many requests at once: rows of one batch at different tasks and states, refilled as they finish.

    engine = Engine(model, vocabulary, rows=8)
    for event in engine.stream(Request(prompt, "tts", seed=i) for i, prompt in enumerate(prompts)):
        ...                                     # new tokens of request `event.index`, as they are made
    answers = engine.generate([Request(prompt, "caption")])

An answer is a function of its own request: neither its neighbours, nor when it came, nor the row that it got
change a bit of it. A request that cannot be answered gets an event with the error; the others go on.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jax.sharding import Mesh

from ar_omni_jax.decoding.grammar import END, class_table
from ar_omni_jax.decoding.placement import place_rows, place_weights
from ar_omni_jax.decoding.request import Event, GenerationError, Plan, Request, plan
from ar_omni_jax.decoding.rows import LOST, Settings, empty_rows, programs
from ar_omni_jax.model.decode_weights import make_decode_weights
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.vocabulary import JointVocabulary

__all__ = ["Engine", "Event", "GenerationError", "Request"]

SMALLEST_BUCKET = 16
IDLE = 0.002  # seconds between two questions for requests when there is nothing else to do
LOST_WHY = (
    "the model's logits for it are no numbers; its weights are damaged, or too large for their type (try "
    'weights="float32"), or guidance or a strategy is too strong'
)
NO_TOKENS = np.zeros(0, np.int32)


@dataclasses.dataclass
class _Answer:
    """One request under way: what errors call it; its row first, then its branches' rows; how many tokens were told."""

    index: int
    name: str
    slots: list[int]
    told: int = 0


@dataclasses.dataclass
class _Waiting:
    index: int
    name: str
    plan: Plan


class Engine:
    """Answers requests with one model.

    Args:
      model: read once; later changes of it do not reach the engine.
      rows: answers made at a time. A request with guidance takes one or two more while it is answered.
      capacity: tokens a row can hold, prompt and answer; default and largest: the model's `max_length`.
      chunk: largest number of tokens a row between two looks of the host. The first token of a new request is
        always told at once.
      weights: "float32", "bfloat16", "float16" or "int8"; None: the model's compute dtype.
      mesh: devices to split weights and cache over, by the rules of training.
    Raises GenerationError when model and vocabulary do not fit together.
    """

    def __init__(
        self,
        model: Transformer,
        vocabulary: JointVocabulary,
        *,
        rows: int = 8,
        capacity: int | None = None,
        chunk: int = 16,
        weights: str | None = None,
        mesh: Mesh | None = None,
    ):
        if model.config.vocab_size != vocabulary.size:
            sizes = f"{model.config.vocab_size} ids, vocabulary {vocabulary.name!r} {vocabulary.size}"
            raise GenerationError(f"the model has {sizes}; load the vocabulary that the checkpoint was trained with")
        if rows < 1 or chunk < 1:
            raise GenerationError(f"Engine(rows={rows}, chunk={chunk}): both must be positive")
        self.vocabulary, self.chunk, self.rows = vocabulary, int(chunk), int(rows)
        if capacity is not None and capacity < 1:
            raise GenerationError(f"Engine(capacity={capacity}): must be positive, or None for the model's max_length")
        self.capacity = min(capacity or model.config.max_length, model.config.max_length)
        made, self.config = make_decode_weights(model, weights, sharded=mesh is not None)
        self._weights = place_weights(made, self.config, weights == "int8", mesh)
        empty = empty_rows(self.config, class_table(vocabulary), rows, self.capacity)
        self._state, shardings = place_rows(empty, mesh)
        self._read_prompt, self._make_tokens, self._clear_row = programs(shardings)
        self._answers: dict[int, _Answer] = {}  # by the slot of the answer's own row
        self._free = list(range(rows))
        self._stopped: set[int] = set()  # requests of this stream that are no longer wanted
        self._unclean: set[int] = set()  # slots whose last request was broken off, or lost: they may hold anything
        self._streaming = False

    def generate(self, requests: Sequence[Request]) -> list[np.ndarray | GenerationError]:
        """The whole answer of each request, int32 ids with the end marker and without the prompt, or the error."""
        requests = list(requests)
        parts: list[list[np.ndarray]] = [[] for _ in requests]
        errors: dict[int, GenerationError] = {}
        for event in self.stream(requests):
            parts[event.index].append(event.tokens)
            if event.error is not None:
                errors[event.index] = event.error
        return [errors.get(i) or np.concatenate(p) for i, p in enumerate(parts)]

    def stop(self, index: int) -> None:
        """Ends request `index` of the running stream: its next event is its last, with an error. One that waits for
        a row never gets one; finished requests are left as they are."""
        self._stopped.add(index)

    def stream(self, requests: Iterable[Request | None]) -> Iterator[Event]:
        """Events of all requests, in the order they happen; closing the iterator ends all of them.

        Args:
          requests: taken one ahead of the rows that are free. It may yield None for "none now": the engine goes
            on with the rows it has and asks again.
        """
        if self._streaming:
            raise GenerationError("this engine is streaming already; close that stream, or make another engine")
        self._streaming = True
        self._stopped.clear()
        try:
            yield from self._rounds(_Source(requests, self.vocabulary, self.capacity, self.rows))
        finally:
            self._streaming = False
            self._unclean.update(slot for answer in self._answers.values() for slot in answer.slots)
            self._answers.clear()
            self._free = list(range(self.rows))

    def _rounds(self, source: _Source) -> Iterator[Event]:
        behind = collections.deque()  # chunks that run while the host looks at the one before
        while True:
            yield from self._stop_marked()
            new = yield from self._admit(source)
            if self._answers:
                behind.append(self._dispatch(1 if new else self.chunk, source.waiting))
            # Nobody waits for a row: keep the device busy with the next chunk before reading this one.
            spare = 1 if self._answers and not source.waiting and not source.more else 0
            while len(behind) > spare:
                yield from self._tell(*behind.popleft())
            if not self._answers and not behind and source.exhausted:
                return

    def _dispatch(self, steps: int, someone_waits: bool):
        """Starts a chunk; returns what `_tell` needs once it has run."""
        keep = np.zeros(self.rows, bool)
        keep[list(self._answers)] = True
        self._state, out, made, states = self._make_tokens(
            self._weights,
            self._state,
            keep,
            np.int32(min(steps, self.chunk)),
            np.bool_(someone_waits),
            config=self.config,
            width=self.chunk,
        )
        return dict(self._answers), out, made, states

    def _tell(self, answers: dict[int, _Answer], out, made, states) -> Iterator[Event]:
        out, made, states = np.asarray(out), np.asarray(made), np.asarray(states)
        for slot, answer in answers.items():
            if self._answers.get(slot) is not answer:
                continue  # finished or stopped since
            if states[slot] == LOST:
                self._release(slot, clean=False)
                yield _refusal(answer, LOST_WHY)
                continue
            fresh = int(made[slot]) - answer.told
            answer.told = int(made[slot])
            done = bool(states[slot] == END)
            if done:
                self._release(slot)
            if fresh or done:
                yield Event(answer.index, out[:fresh, slot].copy(), done)

    def _stop_marked(self) -> Iterator[Event]:
        for slot, answer in list(self._answers.items()):
            if answer.index in self._stopped:
                self._release(slot, clean=False)
                yield _refusal(answer, f"stopped after {answer.told} tokens")

    def _release(self, slot: int, *, clean: bool = True) -> None:
        slots = self._answers.pop(slot).slots
        self._free = sorted(self._free + slots)
        if not clean:
            self._unclean.update(slots)

    def _admit(self, source: _Source) -> Iterator[Event]:
        """Fills free rows with waiting requests; returns whether there were any."""
        new = False
        while True:
            if source.waiting is None:
                refused = source.take()
                if refused is not None:
                    yield refused
                    continue
            wanted = source.waiting
            if wanted is not None and wanted.index in self._stopped:
                source.waiting = None
                yield _refusal(wanted, "stopped before it began")
                continue
            if wanted is None or len(wanted.plan.branches) + 1 > len(self._free):
                if wanted is None and source.more and not self._answers:
                    time.sleep(IDLE)
                return new
            source.waiting = None
            needed = len(wanted.plan.branches) + 1
            slots, self._free = self._free[:needed], self._free[needed:]
            self._fill(wanted.plan, slots)
            self._answers[slots[0]] = _Answer(wanted.index, wanted.name, slots)
            new = True

    def _fill(self, plan: Plan, slots: list[int]) -> None:
        leader = slots[0]
        for number, slot in enumerate(slots):
            # The last id of the answer's own prompt is left to the first step; branches wait for <boi>.
            ids, last = (plan.prompt[:-1], plan.prompt[-1]) if number == 0 else (plan.branches[number - 1], 0)
            length, own = len(ids), number == 0 and len(slots) > 1
            settings = Settings(
                grammar=plan.grammar,
                seed=np.uint32(plan.seed),
                leader=np.int32(leader),
                unconditional=np.int32(slots[1] if own else slot),
                image_only=np.int32(slots[-1] if own else slot),
                base=np.int32(length),
                restarts=np.bool_(number == 1),
            )
            if slot in self._unclean:
                self._state = self._clear_row(self._state, np.int32(slot))
                self._unclean.remove(slot)
            padded = np.zeros(_bucket(length, self.capacity), np.int32)
            padded[:length] = ids
            start, left = (plan.start, plan.left) if number == 0 else (END, 0)
            self._state = self._read_prompt(
                self._weights,
                self._state,
                np.int32(slot),
                padded,
                np.int32(length),
                np.int32(last),
                settings,
                np.int32(start),
                np.int32(left),
                config=self.config,
            )


def _refusal(request: _Answer | _Waiting, why: str) -> Event:
    """The last event of a request that gets no (more) answer."""
    return Event(request.index, NO_TOKENS, True, GenerationError(f"{request.name}: {why}"))


class _Source:
    """The requests that are still to come; `waiting` is the next one that can be answered, or None."""

    def __init__(self, requests: Iterable[Request | None], vocabulary: JointVocabulary, capacity: int, rows: int):
        self._requests, self._taken = iter(requests), 0
        self._vocabulary, self._capacity, self._rows = vocabulary, capacity, rows
        self.more = True
        self.waiting: _Waiting | None = None

    @property
    def exhausted(self) -> bool:
        return not self.more and self.waiting is None

    def take(self) -> Event | None:
        """Takes the next request into `waiting`; returns the event of its refusal when it cannot be answered."""
        try:
            request = next(self._requests)
        except StopIteration:
            self.more = False
            return None
        if request is None:
            return None
        index, self._taken = self._taken, self._taken + 1
        name = f"prompt {index}" + (f" ({request.id})" if request.id else "")
        try:
            made = plan(request, name, self._vocabulary, self._capacity)
            needed = len(made.branches) + 1
            if needed > self._rows:
                raise GenerationError(f"{name}: its guidance needs {needed} rows, the engine has {self._rows}")
        except (ValueError, TypeError) as error:
            if not isinstance(error, GenerationError):
                wrapped = GenerationError(str(error) if str(error).startswith(name) else f"{name}: {error}")
                wrapped.__cause__ = error
                error = wrapped
            return Event(index, NO_TOKENS, True, error)
        self.waiting = _Waiting(index, name, made)
        return None


def _bucket(length: int, capacity: int) -> int:
    """The next power of two, so that few programs are compiled."""
    return min(max(SMALLEST_BUCKET, 1 << max(length - 1, 0).bit_length()), capacity)
