"""Trains the default text tokenizer (SentencePiece BPE, byte fallback) on manifests and plain text files.

    python -m data_pipelines.toyworld --output=TOY --size=3000
    python -m ar_omni_jax.tokenizers.train_text --input=TOY/train.jsonl --output=DIR/text

(these two made the model that ships with the package) writes DIR/text.model and DIR/text.json (what it was
trained on). Equal input gives an equal model: lines are sorted and counted, and the trainer runs on one thread.
The template strings and `assets/general_english.txt` are always part of the corpus, so that text outside the
data is not spelled letter by letter.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import json
import os
import string
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from ar_omni_jax.files import replace_file
from ar_omni_jax.templates import TEMPLATE_SETS
from ar_omni_jax.tokenizers.text import TextTokenizer, TokenizerError

ASSETS = Path(__file__).with_name("assets")
GENERAL_ENGLISH = ASSETS / "general_english.txt"
# Copies of each template string and general line, so that they outweigh chance fragments of a large corpus.
TEMPLATE_COPIES = 200
GENERAL_COPIES = 3


def template_strings() -> list[str]:
    """Every literal of every template set."""
    found = set()
    for template in TEMPLATE_SETS.values():
        found.add(template.user_label)
        for form in template.forms.values():
            found |= {
                form.instruction,
                form.assistant,
                *(item for item in form.user if isinstance(item, str)),
            }
    return sorted(text.strip() for text in found if text.strip())


def read_lines(path: str | os.PathLike) -> Iterator[str]:
    """Text parts of a manifest (.jsonl), or the lines of a text file."""
    path = Path(path)
    if not path.is_file():
        raise TokenizerError(f"{path}: no such file; give a manifest (.jsonl) or a text file")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if path.suffix != ".jsonl":
                yield line.rstrip("\n")
                continue
            try:
                turns = json.loads(line)["turns"]
            except (ValueError, KeyError, TypeError) as e:
                raise TokenizerError(f"{path}: line {number}: not a document ({e!r})") from e
            for turn in turns:
                parts = turn["parts"] if isinstance(turn, dict) else turn
                yield from (part["text"] for part in parts if "text" in part)


def corpus(inputs: Iterable[str | os.PathLike]) -> list[str]:
    """Training lines in a fixed order, each after one space as the templates write it."""
    lines = collections.Counter(line.strip() for path in inputs for line in read_lines(path))
    for line in read_lines(GENERAL_ENGLISH):
        lines[line.strip()] += GENERAL_COPIES
    for text in template_strings():
        lines[text] += TEMPLATE_COPIES
    del lines[""]
    return [" " + line for line in sorted(lines) for _ in range(lines[line])]


def train(lines: list[str], size: int) -> bytes:
    """A serialized SentencePiece model of at most `size` pieces (fewer when the corpus gives fewer)."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type="bpe",
        vocab_size=size,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_digits=True,
        character_coverage=1.0,
        required_chars="".join(c for c in string.printable if c.isprintable() and c != " "),
        max_sentence_length=1 << 20,
        num_threads=1,
        # Markers of the stream belong to the joint vocabulary, not to the text tokenizer.
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        unk_id=0,
        minloglevel=2,
    )
    return out.getvalue()


def describe_input(path: str | os.PathLike) -> dict:
    """Name and digest of an input, and what the dataset.json beside it says of its making, if there is one."""
    path = Path(path)
    out = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    info = path.with_name("dataset.json")
    if info.is_file():
        data = json.loads(info.read_text())
        out |= {key: data[key] for key in ("dataset", "version", "size", "seed") if key in data}
    return out


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", action="append", default=[], help="manifest (.jsonl) or text file; may be repeated")
    parser.add_argument("--output", required=True, type=Path, help="prefix of the .model and .json to write")
    parser.add_argument("--size", type=int, default=2048, help="pieces at most, bytes included")
    args = parser.parse_args(argv)
    lines = corpus(args.input)
    model = train(lines, args.size)
    tokenizer = TextTokenizer(model)
    pieces = sum(len(tokenizer.encode(line)) for line in lines)
    words = sum(len(line.split()) for line in lines)
    record = {
        "kind": "text",
        "identity": tokenizer.identity,
        "pieces": tokenizer.size,
        "pieces_per_word": round(pieces / words, 4),
        "provenance": {
            "command": f"python -m ar_omni_jax.tokenizers.train_text --size={args.size} "
            + " ".join(f"--input={Path(path).name}" for path in args.input),
            "inputs": [describe_input(path) for path in args.input],
            "corpus_sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
            "lines": len(lines),
        },
    }
    replace_file(args.output.with_name(args.output.name + ".model"), model)
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    replace_file(args.output.with_name(args.output.name + ".json"), text.encode())
    print(f"{args.output}.model: {tokenizer.size} pieces, {pieces / words:.3f} pieces a word over {len(lines)} lines")


if __name__ == "__main__":
    main()
