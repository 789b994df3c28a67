"""How far a stream of speech is from offline decoding, and how long it lets one wait, by look-ahead.

  python -m ar_omni_jax.tokenizers.speech.stream_table                       # published layout, random weights
  python -m ar_omni_jax.tokenizers.speech.stream_table --codec=default       # the codec that ships here (causal)
  python -m ar_omni_jax.tokenizers.speech.stream_table --codec=PREFIX        # PREFIX.json and PREFIX.safetensors

Codes come one at a time. `max` and `rms` are of the difference from decoding all codes together, over the rms of
that sound; `jump` and `kink` are the largest step and change of slope of the difference at a seam, in units of the
largest anywhere else: 1 is no rougher than the rest, a click is several. `first` is the number of codes that must be
there before the first sample, and `wait` their time where codes come no faster than they are played. `window` is the
time to decode one window and `RTF` all windows' time over the sound's length, both without compilation.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from ar_omni_jax.files import replace_file
from ar_omni_jax.tokenizers.speech import DEFAULT_PREFIX
from ar_omni_jax.tokenizers.speech.codec import SpeechCodec
from ar_omni_jax.tokenizers.speech.config import published_config
from ar_omni_jax.tokenizers.speech.streaming import LEFT_CONTEXT, STEP, SpeechStream, StreamError
from ar_omni_jax.tokenizers.speech.tokenizer import SpeechTokenizer

LOOKAHEADS = (1, 2, 4, 8, 16, 32)  # codes


@dataclasses.dataclass(frozen=True)
class Row:
    """One stream against offline decoding; see the module's text. Times in seconds, lookahead in codes."""

    lookahead: int
    first_codes: int
    largest: float
    rms: float
    jump: float
    kink: float
    window_seconds: float
    real_time_factor: float


def seam_error(stream: np.ndarray, offline: np.ndarray, seams: np.ndarray) -> tuple[float, float]:
    """(jump, kink): the largest first and second difference of stream - offline within one sample of a seam, over
    the largest anywhere else. Up to about 1 no ear finds the seams; a cut without cross-fade gives several.

    A ten-thousandth of the sound's own largest step counts as nothing (float rounding).
    """
    error, found = stream.astype(np.float64) - offline, []
    for order in (1, 2):
        added = np.abs(np.diff(error, order))
        near = np.zeros(len(added), bool)
        near[(seams[:, None] + np.arange(-order - 1, 2)).clip(0, len(added) - 1)] = True
        floor = 1e-4 * np.abs(np.diff(offline.astype(np.float64), order)).max(initial=1e-30)
        found.append(float(added[near].max(initial=0.0) / max(added[~near].max(initial=0.0), floor)))
    return found[0], found[1]


def _timed_stream(stream: SpeechStream, codes: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Samples, and the seconds of each call that gave some."""
    pieces, seconds = [], []
    for call in [*(lambda c=c: stream.push(c) for c in codes[:, None]), stream.finish]:
        started = time.perf_counter()
        pieces.append(call())
        if len(pieces[-1]):
            seconds.append(time.perf_counter() - started)
    return np.concatenate(pieces), seconds


def measure(
    tokenizer: SpeechTokenizer, codes: np.ndarray, *, lookaheads: Sequence[int], left_context: int, step: int, say=None
) -> list[Row]:
    """One Row a look-ahead; a causal codec has none, and one row. `say` is called with a line on progress."""
    offline, hop = tokenizer.decode(codes), tokenizer.hop_length
    causal = tokenizer.codec.config.causal
    level = max(float(np.sqrt(np.mean(np.square(offline)))), 1e-30)
    rows = []
    for lookahead in lookaheads[:1] if causal else lookaheads:

        def stream(lookahead=lookahead):
            return SpeechStream(tokenizer, lookahead=lookahead, left_context=left_context, step=step)

        stream().warm_up()
        made, seconds = _timed_stream(stream(), codes)
        error = np.abs(made - offline)
        given = 1 if causal else step
        last = len(codes) - (1 if causal else step + lookahead)
        seams = np.arange(given, last + 1, given) * hop
        jump, kink = seam_error(made, offline, seams if causal else np.concatenate([seams, seams + hop]))
        rms = float(np.sqrt(np.mean(np.square(error)))) / level
        factor = sum(seconds) / (len(made) / tokenizer.sample_rate)
        rows.append(
            Row(
                0 if causal else lookahead,
                stream().first_codes,
                float(error.max()) / level,
                rms,
                jump,
                kink,
                float(np.median(seconds)),
                factor,
            )
        )
        if say:
            say(f"look-ahead {rows[-1].lookahead}: rms {rms:.4f}")
    return rows


def table(tokenizer: SpeechTokenizer, rows: Sequence[Row], codes: int) -> str:
    """The rows for people."""
    rate = tokenizer.codec.config.tokens_per_second
    lines = [
        f"{codes} codes, {codes / rate:.1f} s at {tokenizer.sample_rate} Hz, {rate:g} codes a second",
        f"{'look-ahead':>10} {'first':>6} {'wait ms':>8} {'max':>8} {'rms':>8} {'jump':>7} {'kink':>7} "
        f"{'window ms':>10} {'RTF':>6}",
    ]
    for r in rows:
        lines.append(
            f"{r.lookahead:>10} {r.first_codes:>6} {1e3 * r.first_codes / rate:>8.0f} {r.largest:>8.4f} {r.rms:>8.4f} "
            f"{r.jump:>7.4f} {r.kink:>7.4f} {1e3 * r.window_seconds:>10.1f} {r.real_time_factor:>6.3f}"
        )
    return "\n".join(lines)


def load_codec(name: str, seed: int = 0) -> tuple[SpeechTokenizer, str]:
    """(tokenizer, what its weights are) of "published", "default" or a prefix of weight files."""
    if name == "published":
        tokenizer = SpeechTokenizer(SpeechCodec(published_config(), rngs=nnx.Rngs(seed)), "random")
        return tokenizer, f"published layout (WavTokenizer small, 24 kHz), RANDOM weights of seed {seed}"
    prefix = DEFAULT_PREFIX if name == "default" else Path(name)
    tokenizer = SpeechTokenizer.load(prefix)
    return tokenizer, f"weights {tokenizer.identity} of {prefix.name}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m ar_omni_jax.tokenizers.speech.stream_table",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--codec", default="published", help='"published", "default" or a prefix of weight files')
    add("--codes", type=int, default=240, help="length of the sound, in random codes")
    add("--lookaheads", default=",".join(map(str, LOOKAHEADS)), help="codes, comma-separated")
    add("--left_context", type=int, default=LEFT_CONTEXT, help="codes decoded again before each window")
    add("--step", type=int, default=STEP, help="codes a window gives out")
    add("--seed", type=int, default=0, help="of the codes, and of random weights")
    add("--output", type=Path, help="a JSON file for the rows")
    options = parser.parse_args(arguments)
    try:
        tokenizer, weights = load_codec(options.codec, options.seed)
        codes = np.random.default_rng(options.seed).integers(0, tokenizer.codebook_size, options.codes)
        lookaheads = [int(x) for x in options.lookaheads.split(",")]
        rows = measure(
            tokenizer,
            codes,
            lookaheads=lookaheads,
            left_context=options.left_context,
            step=options.step,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except (StreamError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{weights}\n{table(tokenizer, rows, len(codes))}")
    if options.output:
        settings = {"codes": options.codes, "step": options.step, "left_context": options.left_context}
        record = {"weights": weights, **settings, "seed": options.seed, "rows": [dataclasses.asdict(r) for r in rows]}
        replace_file(options.output, (json.dumps(record, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
