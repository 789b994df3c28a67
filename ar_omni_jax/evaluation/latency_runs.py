"""Timed runs of the decoding engine: a batch of equal requests, and one spoken answer."""

from __future__ import annotations

import dataclasses
import statistics
import time

import numpy as np

from ar_omni_jax.decoding.engine import Engine, Request
from ar_omni_jax.decoding.strategy import GREEDY, ModeSwitch
from ar_omni_jax.evaluation.agreement import compare
from ar_omni_jax.evaluation.hf_baseline import Baseline
from ar_omni_jax.evaluation.latency_subjects import Subject, cache_bytes, weight_bytes
from ar_omni_jax.tokenizers.speech.streaming import SpeechStream
from ar_omni_jax.vocabulary import Modality

# Greedy over the whole vocabulary, as HF's `generate`: the engine sees to the number of tokens and to nothing else.
UNCONSTRAINED = ModeSwitch(
    greedy_after=(), sample_after=(), greedy_first=True, ends=("eom",), greedy=GREEDY, sample=GREEDY
)
ATTEMPTS = 6  # at finding prompts that no row ends early
REST = 0.3  # seconds before a run: threads of the rival's library wait for more work at full speed for a while
BUCKET = 32  # cache lengths are multiples of it


@dataclasses.dataclass
class Run:
    """One run: seconds in all; of the first row: when its first and last tokens came, and how many at first."""

    seconds: float
    answers: list[np.ndarray]
    first: float
    last: float
    first_count: int

    @property
    def tokens(self) -> int:
        return sum(map(len, self.answers))

    @property
    def step(self) -> float:
        """Seconds a token of the first row takes once its first ones are there."""
        later = len(self.answers[0]) - self.first_count
        return (self.last - self.first) / later if later else float("nan")


def run(engine: Engine, requests: list[Request]) -> Run:
    """All requests to their end. Raises what a request's error is."""
    pieces: list[list[np.ndarray]] = [[] for _ in requests]
    first, last, first_count = 0.0, 0.0, 0
    started = time.perf_counter()
    for event in engine.stream(requests):
        if event.error is not None:
            raise event.error
        pieces[event.index].append(np.asarray(event.tokens, np.int32))
        if event.index == 0 and len(event.tokens):
            last = time.perf_counter() - started
            if not first_count:
                first, first_count = last, len(event.tokens)
    answers = [np.concatenate([np.zeros(0, np.int32), *row]) for row in pieces]
    return Run(time.perf_counter() - started, answers, first, last, first_count)


def random_prompt(subject: Subject, length: int, seed: int) -> np.ndarray:
    """<bos> and random text ids, int32 [length]."""
    text = subject.vocabulary.text
    ids = np.random.default_rng(seed).integers(text.start, text.stop, length).astype(np.int32)
    ids[0] = subject.vocabulary.marker("bos")
    return ids


def _bucketed(n: int) -> int:
    return -(-n // BUCKET) * BUCKET


def measure_batch(
    subject: Subject,
    rows: int,
    *,
    weights: str,
    prompt: int,
    new: int,
    chunk: int,
    repeats: int,
    short_repeats: int,
    bandwidth: float,
    baseline: Baseline | None,
) -> dict:
    """One line of the table: `rows` equal requests, and HF's run of the same. Medians of `repeats` runs; of one row's
    first token, of `short_repeats` runs that end with it. bandwidth in bytes a second."""
    engine = Engine(
        subject.model, subject.vocabulary, rows=rows, capacity=_bucketed(prompt + new), chunk=chunk, weights=weights
    )
    requests, cold = _equal_requests(engine, subject, rows, prompt, new)
    prompts = np.stack([request.prompt for request in requests])
    warm, theirs, their_firsts, ids = _in_turns(engine, requests, prompts, new, repeats, baseline)
    firsts = [r.first for r in warm]
    if rows == 1:
        firsts, their_firsts = _first_tokens(engine, requests, prompts, short_repeats, baseline)
    seconds = statistics.median(r.seconds for r in warm)
    step = statistics.median(r.step for r in warm)
    row = {
        "batch": rows,
        "repeats": len(warm),
        "first_token_repeats": len(firsts),
        "first_token_ms": 1e3 * statistics.median(firsts),
        "first_tokens": warm[0].first_count,
        "tokens_per_second": warm[0].tokens / seconds,
        "seconds": seconds,
        "step_ms": 1e3 * step,
        "percent_of_limit": 100 * _step_bytes(subject, rows, weights, prompt + new / 2) / bandwidth / step,
        "compile_seconds": max(0.0, cold - seconds),
        "tokens": warm[0].tokens,
    }
    if warm[0].tokens < rows * new:
        row["note"] = f"{rows * new - warm[0].tokens} of {rows * new} tokens were not made: rows ended by themselves"
    if baseline is not None:
        rate = rows * new / statistics.median(theirs)
        row["hf"] = {
            "tokens_per_second": rate,
            "first_token_ms": 1e3 * statistics.median(their_firsts),
            "ratio": row["tokens_per_second"] / rate,
            **compare(subject.model, prompts, warm[0].answers, ids),
        }
    return row


def _in_turns(
    engine: Engine, requests: list[Request], prompts: np.ndarray, new: int, repeats: int, baseline: Baseline | None
) -> tuple[list, list[float], list[float], np.ndarray | None]:
    """Ours and HF's by turns: our runs, HF's seconds, its seconds to the first token, and its last ids."""
    warm, theirs, firsts, ids = [], [], [], None
    if baseline is not None:
        baseline.generate(prompts, new)
    for _ in range(repeats):
        time.sleep(REST)
        warm.append(run(engine, requests))
        if baseline is not None:
            time.sleep(REST)
            ids, seconds = baseline.generate(prompts, new)
            theirs.append(seconds)
            firsts.append(baseline.generate(prompts, 1)[1])
    return warm, theirs, firsts, ids


def _first_tokens(
    engine: Engine, requests: list[Request], prompts: np.ndarray, repeats: int, baseline: Baseline | None
) -> tuple[list[float], list[float]]:
    """Seconds to the first token in runs that end with it, ours and HF's by turns."""
    short = [dataclasses.replace(request, max_new_tokens=1) for request in requests]
    ours, theirs = [], []
    for _ in range(repeats):
        time.sleep(REST)
        ours.append(run(engine, short).first)
        if baseline is not None:
            time.sleep(REST)
            theirs.append(baseline.generate(prompts, 1)[1])
    return ours, theirs


def _equal_requests(engine: Engine, subject: Subject, rows: int, prompt: int, new: int) -> tuple[list[Request], float]:
    """Requests that all make `new` tokens, and the seconds of the very first run. A row that ends by itself gets
    another prompt, as all rows are to do the same work; after ATTEMPTS it stays."""
    seeds = list(range(rows))
    cold = None
    for attempt in range(1, ATTEMPTS + 1):
        prompts = [random_prompt(subject, prompt, seed) for seed in seeds]
        requests = [Request(prompt=ids, task=UNCONSTRAINED, max_new_tokens=new) for ids in prompts]
        made = run(engine, requests)
        cold = made.seconds if cold is None else cold
        short = [i for i, answer in enumerate(made.answers) if len(answer) < new]
        if not short:
            break
        seeds = [i + attempt * rows if i in short else seed for i, seed in enumerate(seeds)]
    return requests, cold


def _step_bytes(subject: Subject, rows: int, weights: str, length: float) -> float:
    config = subject.model.config
    cache = weights if weights != "int8" else str(config.dtype)
    return weight_bytes(config, weights) + cache_bytes(config, rows, length, cache)


def measure_speech(subject: Subject, *, codes: int, weights: str, prompt: int, chunk: int, repeats: int) -> dict:
    """One spoken answer: when the first token and the first sound come, and time over the sound's length, medians of
    `repeats` runs each without and with the codec."""
    engine = Engine(
        subject.model, subject.vocabulary, rows=1, capacity=_bucketed(prompt + codes + 3), chunk=chunk, weights=weights
    )
    tokenizer = subject.speech()
    SpeechStream(tokenizer).warm_up()
    for seed in range(ATTEMPTS):
        ids = random_prompt(subject, prompt, seed)
        request = Request(prompt=ids, task="tts", strategies={"speech": GREEDY}, budgets={"speech": codes})
        silent = run(engine, [request])
        if len(silent.answers[0]) == codes + 3:
            break
    without = statistics.median(run(engine, [request]).seconds for _ in range(repeats))
    heard = [_speak(engine, request, subject, tokenizer) for _ in range(repeats)]
    made = heard[0][3]
    sound = made / tokenizer.sample_rate
    return {
        "codes": made // tokenizer.hop_length,
        "seconds_of_sound": sound,
        "codec": f"{'causal' if tokenizer.codec.config.causal else 'windowed'}, weights {tokenizer.identity}",
        "chunk": chunk,
        "repeats": len(heard),
        "first_token_ms": 1e3 * statistics.median(h[0] for h in heard),
        "first_sound_ms": 1e3 * statistics.median(h[1] for h in heard),
        "first_sound_codes": heard[0][4] // tokenizer.hop_length,
        "rtf_without_codec": without / sound,
        "rtf_with_codec": statistics.median(h[2] for h in heard) / sound,
    }


def _speak(engine: Engine, request: Request, subject: Subject, tokenizer) -> tuple[float, float, float, int, int]:
    """(first token, first sound, all: seconds; samples, samples of the first sound)."""
    stream = SpeechStream(tokenizer)
    first_token = first_sound = 0.0
    samples = first_samples = 0
    started = time.perf_counter()
    for event in engine.stream([request]):
        if event.error is not None:
            raise event.error
        first_token = first_token or time.perf_counter() - started
        ids = event.tokens[subject.vocabulary.modality_of(event.tokens) == Modality.SPEECH]
        # A codec with fewer codes than the model's speech range stands for one with all of them.
        codes = subject.vocabulary.to_codes(Modality.SPEECH, ids) % tokenizer.codebook_size
        pieces = [stream.push(codes)] + ([stream.finish()] if event.done else [])
        samples += sum(map(len, pieces))
        if samples and not first_samples:
            first_sound, first_samples = time.perf_counter() - started, samples
    return first_token, first_sound, time.perf_counter() - started, samples, first_samples
