"""What is in a directory of token or packed shards: counts, lengths, fill, tokens by modality and task; samples.

    python -m data_pipelines.inspect_shards --input=DIR [--output=SAMPLES]

Prints the numbers, reading and checking every record. With --output it also writes statistics.png and decodes
some documents of each task to text, PNG and WAV with the tokenizers that made them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ar_omni_jax.documents import TASKS, split_token_class
from ar_omni_jax.vocabulary import MODALITY_NAMES, VocabularyError
from data_pipelines import shard_statistics as statistics
from data_pipelines.dataset_info import DatasetInfo, read_info
from data_pipelines.decode_samples import decode_document

Sample = tuple[str, np.ndarray, np.ndarray]  # name, ids, token classes


def scan(
    directory: str | os.PathLike, split: str, info: DatasetInfo, samples: int = 0
) -> tuple[dict[str, statistics.GroupStatistics], dict[str, list[Sample]]]:
    """Statistics by group and the first `samples` documents by task, of every record of a split, all checked."""
    groups: dict[str, statistics.GroupStatistics] = {}
    kept: dict[str, list[Sample]] = {}
    for group, documents in statistics.iterate(directory, split, info):
        entry = groups.setdefault(group, statistics.GroupStatistics())
        if info.kind == "packed":
            entry.add_row(len(documents))
        for name, tokens, classes in documents:
            entry.add(tokens, classes)
            task = TASKS[split_token_class(int(classes[0]))[0]]
            if len(kept.setdefault(task, [])) < samples:
                kept[task].append((name, tokens, classes))
    return groups, kept


def description(info: DatasetInfo) -> list[str]:
    """What dataset.json says: kind, vocabulary, tokenizers, settings, documents dropped or cut."""
    vocabulary = info.vocabulary
    lines = [
        f"kind {info.kind}, vocabulary {vocabulary.name} ({vocabulary.size} ids, {vocabulary.fingerprint})",
        "tokenizers: " + (", ".join(f"{k} {v}" for k, v in sorted(info.tokenizers.items())) or "not named"),
        "settings: " + (", ".join(f"{k}={v}" for k, v in sorted(info.settings.items())) or "none"),
    ]
    for split, entry in sorted(info.splits.items()):
        for reason, number in sorted(entry.get("dropped", {}).items()):
            names = [d["id"] for d in entry.get("dropped_list", []) if d["reason"] == reason][:5]
            lines.append(f"{split}: {number} documents dropped ({reason}): {', '.join(names)}, ...")
        if entry.get("cut", {}).get("documents"):
            lines.append(f"{split}: {entry['cut']['documents']} documents cut into {entry['cut']['pieces']} pieces")
        for name, part in entry.get("longer", {}).items():
            lines.append(f"{split}: {part['documents']} documents in longer rows: {name}")
    return lines


def check_tokenizers(info: DatasetInfo, tokenizers: Any, where: str) -> None:
    """VocabularyError unless the data was made with these tokenizers: others would decode it to noise."""
    tokenizers.vocabulary.require_same(info.vocabulary.fingerprint, where)
    for part, made_with in info.tokenizers.items():
        here = tokenizers.identities.get(part, made_with)
        if here != made_with:
            raise VocabularyError(
                f"{where} was made with the {part} tokenizer {made_with}, but these are {here}; give "
                "--tokenizers= "
                "those that it was made with, or build the data again"
            )


def write_samples(samples: dict[str, list[Sample]], tokenizers: Any, output: Path, split: str) -> list[Path]:
    """Decodes the samples of a split to output/SPLIT-TASK-N.{txt,png,wav}; returns the files."""
    files: list[Path] = []
    for task, documents in samples.items():
        for i, (name, tokens, classes) in enumerate(documents):
            text, written = decode_document(tokens, classes, tokenizers, output / f"{split}-{task}-{i}")
            print(f"{split} {task} ({name}): {' '.join(text.split())}")
            files += written
    return files


def inspect(
    directory: str | os.PathLike,
    output: str | os.PathLike | None = None,
    splits: Sequence[str] = (),
    samples: int = 2,
    tokenizers: Any = "toyworld",
) -> dict[str, dict[str, statistics.GroupStatistics]]:
    """Prints and, with `output`, plots and decodes; returns the statistics by split and group.

    Args:
      tokenizers: name or directory for `load_tokenizers`, or a loaded bundle; used only with `output`.
    """
    info = read_info(directory)
    print("\n".join([str(directory), *description(info)]))
    found, kept = {}, {}
    for split in splits or sorted(info.splits):
        found[split], kept[split] = scan(directory, split, info, samples if output else 0)
        print("\n".join(statistics.summary_lines(split, found[split], info.length)))
    if output is None:
        return found
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    statistics.plot(found, output / "statistics.png")
    if samples:
        if isinstance(tokenizers, str | os.PathLike):
            tokenizers = _load(tokenizers, found)
        check_tokenizers(info, tokenizers, str(directory))
        for split, by_task in kept.items():
            write_samples(by_task, tokenizers, output, split)
    print(f"statistics.png and samples are in {output}")
    return found


def _load(name: str | os.PathLike, found: dict[str, dict[str, statistics.GroupStatistics]]) -> Any:
    """The tokenizers of the modalities that occur."""
    from ar_omni_jax.tokenizers.bundle import load_tokenizers

    present = {m for groups in found.values() for s in groups.values() for m, n in s.by_modality().items() if n}
    return load_tokenizers(name, need=[m for m in MODALITY_NAMES[:3] if m in present])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="directory that build_shards or pack_shards wrote")
    parser.add_argument("--output", help="directory for statistics.png and decoded samples")
    parser.add_argument("--split", action="append", default=[], help="split to read, may repeat; default: all")
    parser.add_argument("--samples", type=int, default=2, help="documents of each task to decode")
    parser.add_argument("--tokenizers", default="toyworld", help="name or directory of the tokenizers")
    args = parser.parse_args(argv)
    try:
        inspect(args.input, args.output, args.split, args.samples, args.tokenizers)
    except (ValueError, OSError) as e:
        sys.exit(f"inspect_shards: {e}")
    except KeyboardInterrupt:
        print("inspect_shards: interrupted; run the same command again", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
