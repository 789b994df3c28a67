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
from ar_omni_jax.decoding.lanes import Answer, Chunk, Lane, make_lanes
from ar_omni_jax.decoding.placement import place_weights
from ar_omni_jax.decoding.request import Event, GenerationError, Plan, Request, plan
from ar_omni_jax.decoding.rows import LOST
from ar_omni_jax.model.decode_weights import make_decode_weights
from ar_omni_jax.model.transformer import Transformer
from ar_omni_jax.vocabulary import JointVocabulary

__all__ = ["Engine", "Event", "GenerationError", "Request"]

IDLE = 0.002  # seconds between two questions for requests when there is nothing else to do
LOST_WHY = (
    "the model's logits for it are no numbers; its weights are damaged, or too large for their type (try "
    'weights="float32"), or guidance or a strategy is too strong'
)
NO_TOKENS = np.zeros(0, np.int32)


@dataclasses.dataclass
class _Waiting:
    index: int
    name: str
    plan: Plan


class Engine:
    """Answers requests with one model.

    Args:
      model: read once; later changes of it do not reach the engine.
      rows: answers made at a time. A request with guidance takes one or two more while it is answered. On a CPU
        a small model's rows are dealt to lanes of 4 or more (`decoding/lanes.py`): take a multiple of 8.
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
        self._lanes = make_lanes(
            place_weights(made, self.config, weights == "int8", mesh),
            self.config,
            class_table(vocabulary),
            rows=self.rows,
            capacity=self.capacity,
            chunk=self.chunk,
            mesh=mesh,
        )
        self._stopped: set[int] = set()  # requests of this stream that are no longer wanted
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
            yield from self._rounds(_Source(requests, self.vocabulary, self.capacity, self._lanes[0].rows))
        finally:
            self._streaming = False
            for lane in self._lanes:
                lane.abandon()

    def _rounds(self, source: _Source) -> Iterator[Event]:
        behind: collections.deque[tuple[Lane, Chunk]] = collections.deque()  # run while the host looks at earlier ones
        while True:
            yield from self._stop_marked()
            fresh = yield from self._admit(source)
            busy = [lane for lane in self._lanes if lane.answers]
            for lane in busy:
                steps = 1 if lane in fresh else self.chunk
                behind.append((lane, lane.start(steps, source.waiting is not None)))
            # Nobody waits for a row: keep the device busy with the next chunks before reading these.
            spare = 0 if source.waiting or source.more else len(busy)
            while len(behind) > spare:
                yield from self._tell(*behind.popleft())
            if not behind and source.exhausted and not any(lane.answers for lane in self._lanes):
                return

    def _tell(self, lane: Lane, chunk: Chunk) -> Iterator[Event]:
        out, made, states = chunk.wait()
        for slot, answer in chunk.answers.items():
            if lane.answers.get(slot) is not answer:
                continue  # finished or stopped since
            answer.ahead -= chunk.steps
            if states[slot] == LOST:
                lane.release(slot, clean=False)
                yield _refusal(answer, LOST_WHY)
                continue
            fresh = int(made[slot]) - answer.told
            answer.told = int(made[slot])
            done = bool(states[slot] == END)
            if done:
                lane.release(slot)
            if fresh or done:
                yield Event(answer.index, out[:fresh, slot].copy(), done)

    def _stop_marked(self) -> Iterator[Event]:
        for lane in self._lanes:
            for slot, answer in list(lane.answers.items()):
                if answer.index in self._stopped:
                    lane.release(slot, clean=False)
                    yield _refusal(answer, f"stopped after {answer.told} tokens")

    def _admit(self, source: _Source) -> Iterator[Event]:
        """Fills free rows with waiting requests; returns the lanes that got any."""
        fresh: list[Lane] = []
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
            lane = max(self._lanes, key=lambda lane: len(lane.free))
            if wanted is None or len(wanted.plan.branches) + 1 > len(lane.free):
                if wanted is None and source.more and not any(lane.answers for lane in self._lanes):
                    time.sleep(IDLE)
                return fresh
            source.waiting = None
            lane.admit(wanted.index, wanted.name, wanted.plan)
            fresh.append(lane)


def _refusal(request: Answer | _Waiting, why: str) -> Event:
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
