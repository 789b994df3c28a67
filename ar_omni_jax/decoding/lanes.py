"""Lanes: rows that decode together in one program, and that program's state on the device.

An accelerator has one lane. On a CPU the products of a few rows with small matrices are too small to be shared by
threads (they spend as long meeting as multiplying), so rows of a model whose weights stay in the cache are dealt to
several lanes, each on one core of its own, side by side.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ar_omni_jax.decoding.grammar import END
from ar_omni_jax.decoding.placement import place_rows
from ar_omni_jax.decoding.request import Plan
from ar_omni_jax.decoding.rows import Settings, empty_rows, programs
from ar_omni_jax.machine import cores, processor_vendor
from ar_omni_jax.model.config import TransformerConfig
from ar_omni_jax.model.decode_weights import DecodeWeights, tile_weights, transpose_weights

SMALLEST_BUCKET = 16
ROWS_OF_A_LANE = 4  # at least: a row with both branches of its guidance fits, and weights are read for several rows
ROOM_STEP, SMALLEST_ROOM = 32, 64  # slots of a lane's rows
CACHED_BYTES = 32 << 20  # of weights: above, lanes would take turns at the memory
ROWS_OF_TILES = 8  # of a lane: from here on tiles gain little (8 rows) or lose (16)
# Who makes the processors on which each form of the matrices was measured to be faster (benchmarks/products.py).
VENDORS_OF_TILES = ("AuthenticAMD",)  # 1.2 to 1.6 times as fast; Intel with AVX-512 half as fast
VENDORS_OF_TRANSPOSED = ("GenuineIntel",)  # where no cache holds them: 8 rows 1.3 times as fast, prompts 1.4 times


@dataclasses.dataclass
class Answer:
    """One request under way: what errors call it; its row first, then its branches' rows; slots that its longest
    prompt takes; how many tokens were told, and at most how many more were started."""

    index: int
    name: str
    slots: list[int]
    prompt: int
    told: int = 0
    ahead: int = 0


@dataclasses.dataclass
class Chunk:
    """Tokens being made: whose they are (by slot), at most how many of each, and how to wait for (ids [width, rows],
    tokens made since admission [rows], grammar states [rows])."""

    answers: dict[int, Answer]
    steps: int
    results: Any

    def wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The three arrays; raises what went wrong on the device."""
        results = self.results
        if isinstance(results, concurrent.futures.Future):
            results = results.result()
        out, made, states = map(np.asarray, results)
        return out, made, states


class Lane:
    """`rows` rows with room for `capacity` tokens each.

    Args:
      prompt_weights, token_weights: what prompts are read with, and tokens made, in forms that may differ.
      alone: on a thread of its own, tokens made by a program of one thread (CPU without a mesh only). Its rows then
        have only as much room as they need by now: a step reads all of it, needed or not. The results' bits do not
        depend on the room, a multiple of ROOM_STEP, in programs of one thread (elsewhere they do).
    Attributes:
      answers: by the slot of each answer's own row. free: slots in no use, ascending.
    """

    def __init__(
        self,
        prompt_weights: DecodeWeights,
        token_weights: DecodeWeights,
        config: TransformerConfig,
        class_of: np.ndarray,
        *,
        rows: int,
        capacity: int,
        chunk: int,
        mesh: Mesh | None,
        alone: bool,
    ):
        self.rows, self.capacity, self.chunk = rows, capacity, chunk
        self._prompt_weights, self._token_weights, self._config = prompt_weights, token_weights, config
        self._room = _room(0, capacity) if alone else capacity
        self._state, shardings = place_rows(empty_rows(config, class_of, rows, self._room), mesh)
        self._read_prompt, self._make_tokens, self._clear_row, self._resize = programs(shardings, single_thread=alone)
        # The runtime keeps the order of what one thread starts, so lanes must be started by different ones.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "decoding-lane") if alone else None
        self._begun: list[concurrent.futures.Future] = []  # prompts handed to the thread since the last chunk
        self.answers: dict[int, Answer] = {}
        self.free = list(range(rows))
        self._unclean: set[int] = set()  # slots whose last request was broken off, or lost: they may hold anything

    def admit(self, index: int, name: str, plan: Plan) -> None:
        """Gives the request rows, which must be free, and reads its prompts into them."""
        needed = len(plan.branches) + 1
        slots, self.free = self.free[:needed], self.free[needed:]
        unclean = self._unclean.intersection(slots)
        self._unclean -= unclean
        longest = max(len(ids) for ids in (plan.prompt, *plan.branches))
        if self._thread is not None and not self.answers:
            self._room = 0  # nobody needs what earlier answers did
        self.answers[slots[0]] = Answer(index, name, slots, _bucket(longest, self.capacity))
        room = self._room_now()
        if self._thread is None:
            self._fill(plan, slots, unclean, room)
        else:
            self._begun.append(self._thread.submit(self._fill, plan, slots, unclean, room))

    def release(self, slot: int, *, clean: bool = True) -> None:
        """Frees the rows of the answer at `slot`; clean: it ended by itself."""
        slots = self.answers.pop(slot).slots
        self.free = sorted(self.free + slots)
        if not clean:
            self._unclean.update(slots)

    def abandon(self) -> None:
        """Frees all rows; what became of prompts that no chunk has waited for is nobody's concern any more."""
        self._begun.clear()
        for slot in list(self.answers):
            self.release(slot, clean=False)

    def start(self, steps: int, until_one_ends: bool) -> Chunk:
        """Starts `steps` tokens, at most `chunk`, of every row under way."""
        keep = np.zeros(self.rows, bool)
        keep[list(self.answers)] = True
        steps = min(steps, self.chunk)
        for answer in self.answers.values():
            answer.ahead += steps
        call = (keep, np.int32(steps), np.bool_(until_one_ends))
        begun, self._begun = self._begun, []
        task = (call, begun, self._room_now())
        run = self._run(*task) if self._thread is None else self._thread.submit(self._run, *task)
        return Chunk(dict(self.answers), steps, run)

    def _room_now(self) -> int:
        """Slots a row that what is under way may need; never fewer while anything is."""
        if self._thread is not None:
            reach = max(answer.prompt + answer.told + answer.ahead for answer in self.answers.values())
            self._room = max(self._room, _room(reach, self.capacity))
        return self._room

    def _have_room(self, room: int) -> None:
        """On the lane's thread."""
        if room != self._state.cache.capacity:
            self._state = self._resize(self._state, room=room)

    def _run(self, call, begun, room):
        for prompt in begun:  # a prompt's failure is its first chunk's
            prompt.result()
        self._have_room(room)
        self._state, *results = self._make_tokens(
            self._token_weights, self._state, *call, config=self._config, width=self.chunk
        )
        return results

    def _fill(self, plan: Plan, slots: list[int], unclean: set[int], room: int) -> None:
        self._have_room(room)
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
            if slot in unclean:
                self._state = self._clear_row(self._state, np.int32(slot))
            padded = np.zeros(_bucket(length, self.capacity), np.int32)
            padded[:length] = ids
            start, left = (plan.start, plan.left) if number == 0 else (END, 0)
            self._state = self._read_prompt(
                self._prompt_weights,
                self._state,
                np.int32(slot),
                padded,
                np.int32(length),
                np.int32(last),
                settings,
                np.int32(start),
                np.int32(left),
                config=self._config,
            )


def make_lanes(weights: DecodeWeights, config, class_of, *, rows: int, mesh: Mesh | None, **room) -> list[Lane]:
    """The lanes of `rows` rows in all, alike; `room`: capacity and chunk of each."""
    count = 1
    prompts = tokens = weights
    if mesh is None and jax.default_backend() == "cpu":
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
        count = lane_count(rows, size, cores())
        prompts, tokens = _forms(weights, size <= CACHED_BYTES, rows // count, laned=count > 1)
    options = {"rows": rows // count, "mesh": mesh, "alone": count > 1, **room}
    return [Lane(prompts, tokens, config, class_of, **options) for _ in range(count)]


def _forms(weights: DecodeWeights, cached: bool, rows: int, laned: bool) -> tuple[DecodeWeights, DecodeWeights]:
    """On a CPU, what prompts are read and tokens are made with by lanes of `rows` rows. cached: the weights stay in
    the cache. The vendor decides, not a measurement, so that equal machines give equal bits."""
    vendor = processor_vendor()
    if laned and rows < ROWS_OF_TILES and vendor in VENDORS_OF_TILES:
        return weights, tile_weights(weights)
    if not cached and vendor in VENDORS_OF_TRANSPOSED:
        return (transpose_weights(weights),) * 2
    return weights, weights


def lane_count(rows: int, weight_bytes: int, cores: int) -> int:
    """Lanes on a CPU: the most that divide the rows into lanes of ROWS_OF_A_LANE or more, one a core; one if the
    weights do not stay in the cache."""
    most = min(cores, rows // ROWS_OF_A_LANE) if weight_bytes <= CACHED_BYTES else 1
    return next((count for count in range(most, 1, -1) if rows % count == 0), 1)


def _room(reach: int, capacity: int) -> int:
    """Slots for rows that use `reach` of `capacity`: few sizes, each compiled once, multiples of ROOM_STEP."""
    whole = -(-capacity // ROOM_STEP) * ROOM_STEP
    return min(max(SMALLEST_ROOM, 1 << max(reach - 1, 0).bit_length()), whole)


def _bucket(length: int, capacity: int) -> int:
    """The next power of two, so that few programs are compiled."""
    return min(max(SMALLEST_BUCKET, 1 << max(length - 1, 0).bit_length()), capacity)
