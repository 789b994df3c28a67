"""Token shards to packed shards: rows of one length, by mixture group, shuffled by seed, no document lost.

    python -m data_pipelines.pack_shards --input=SHARDS --output=PACKED --length=512

Several --input are packed as one: their splits of one name become one. The documents of a split are visited in a
pseudo-random order (a function of the seed, not a list) in units of about `unit_tokens` tokens; each unit is packed
by itself, so memory does not grow with the corpus. A unit writes one shard a group, atomically, then its counts; a
stopped job continues with the first unit that lacks them and ends with the same bytes.

    ... --overlong=bucket --bucket_lengths=2048,8192

Documents longer than --length go to PACKED/rows-2048 and PACKED/rows-8192, each a packed data set of its own: the
shortest rows that hold them. What dataset.json of PACKED says of a split is written last, when all of them are whole.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ar_omni_jax.files import only_writer
from data_pipelines.buckets import FOLDER, Part, divide, folder_name
from data_pipelines.dataset_info import DatasetInfo, read_info
from data_pipelines.pack_options import BEYOND, OVERLONG, PackOptions
from data_pipelines.packed_folder import PackedFolder, discard, forget
from data_pipelines.schema import SchemaError
from data_pipelines.split_packer import SplitPacker, origin_of, state_of
from data_pipelines.split_reader import SplitReader, open_inputs

__all__ = ["PackOptions", "SplitPacker", "main", "pack", "summary"]

LOW_FILL = 0.95  # below it, the summary gives advice


def pack(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    output: str | os.PathLike,
    options: PackOptions,
    splits: Sequence[str] = (),
    overwrite: bool = False,
    show_progress: bool = False,
) -> DatasetInfo:
    """Packs `splits` (default: all of the input) and describes them in output/dataset.json, which is returned.

    source: folder that build_shards wrote, or several whose splits of one name become one. A split that is there
    already, whole and made from the same documents with the same options, is left alone; anything else in its place
    is a SchemaError unless `overwrite`. With buckets the same holds for output/rows-LENGTH of each.
    """
    output = Path(output)
    inputs, documents = open_inputs(source)
    splits = splits or sorted(documents.splits)
    if reserved := [split for split in splits if FOLDER.fullmatch(split)]:
        raise SchemaError(f"split {reserved[0]!r} has the name of a folder of longer rows; build it under another name")
    with _alone(output):
        folders = _folders(output, options, documents, splits if overwrite else ())
        longer = sorted(path for path in output.glob("rows-*") if FOLDER.fullmatch(path.name))
        replaced = [output, *longer] if overwrite else []
        for path in replaced:
            forget(path, splits)
        for split in splits:
            with contextlib.closing(SplitReader(inputs, split)) as reader:
                for path in replaced:
                    discard(path, split)
                _pack_split(reader, split, folders, options, show_progress)
    return folders[0].info


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keeps a second command out of `output`: each would take the other's unfinished shards for left ones."""
    output.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(only_writer(output))
        except BlockingIOError as e:
            raise SchemaError(
                f"{output}: another pack_shards is writing here; wait for it, stop it, or give another --output"
            ) from e
        yield


def _folders(output: Path, options: PackOptions, documents: DatasetInfo, replaced: Sequence[str]) -> list[PackedFolder]:
    """Of the rows of each length, those of the ordinary one first."""
    folders = []
    for shorter, length in itertools.pairwise((0, *options.row_lengths)):
        path, settings = output, options.settings()
        if shorter:
            path, settings = output / folder_name(length), options.for_rows(length).settings()
            settings["longer_than"] = shorter
        settings |= documents.settings
        info = DatasetInfo("packed", documents.vocabulary, documents.tokenizers, {}, settings, length)
        folders.append(PackedFolder(path, info, replaced))
    return folders


def _pack_split(
    reader: SplitReader, split: str, folders: Sequence[PackedFolder], options: PackOptions, show_progress: bool
) -> None:
    """Packs what of a split is not there yet, rows of the ordinary length last: their entry says that all is there."""
    origin = origin_of(reader)
    if not _is_packed(folders, split, origin):
        state = state_of(folders[0].path, split)
        parts = divide(reader, options, origin, state, show_progress)
        packers = [
            SplitPacker(part, folder.path, split, folder.info.vocabulary, options.for_rows(folder.info.length), origin)
            for part, folder in zip(parts, folders, strict=True)
        ]
        packers[0].check_plan()
        for packer, folder in reversed(list(zip(packers, folders, strict=True))):
            ordinary = folder is folders[0]
            if (len(packer.part) or ordinary) and not folder.holds(split, origin):
                longer = _longer(parts, folders) if ordinary and options.bucket_lengths else {}
                folder.add(split, packer.run(show_progress) | longer)
    for folder in folders:
        shutil.rmtree(state_of(folder.path, split), ignore_errors=True)


def _longer(parts: Sequence[Part], folders: Sequence[PackedFolder]) -> dict[str, Any]:
    """What went to longer rows, by folder."""
    found = {}
    for part, folder in zip(parts[1:], folders[1:], strict=True):
        if len(part):
            found[folder.path.name] = {"documents": len(part), "tokens": part.tokens, "by_group": dict(part.totals)}
    return {"longer": found}


def _is_packed(folders: Sequence[PackedFolder], split: str, origin: Mapping[str, Any]) -> bool:
    """Whether a split is there, whole, with all of its longer rows."""
    if not folders[0].holds(split, origin):
        return False
    longer = folders[0].info.splits[split].get("longer", {})
    return all(folder.holds(split, origin) for folder in folders[1:] if folder.path.name in longer)


def summary(info: DatasetInfo) -> str:
    """A line a split and group: rows, documents, tokens, fill; then what was cut, dropped, or went to longer rows."""
    lines = []
    for split, entry in info.splits.items():
        for group, rows in entry["rows"].items():
            kept = entry["by_group"].get(group, {"documents": 0, "tokens": 0})
            lines.append(
                f"{split}/{group}: {rows} rows of {info.length}, {kept['documents']} documents, "
                f"{kept['tokens']} "
                f"tokens, fill {entry['fill'].get(group, 0):.2%}"
            )
            if entry["fill"].get(group, 1) < LOW_FILL and rows > 1:
                mean = kept["tokens"] / kept["documents"]
                bucket = "longer_than" in info.settings  # its texts, if any, are as long as the others
                better = -(-int(mean * (info.length // mean + 1) * 1.03) // 64) * 64
                helped = bucket or group == "text" or info.settings.get("top_up")
                texts = "" if helped else "--top_up=text puts texts there, or "
                lines.append(
                    f"  low fill: whole documents of about {mean:.0f} tokens leave this room; {texts}try "
                    f"--{'bucket_lengths' if bucket else 'length'}={better}"
                )
        if entry["cut"]["documents"]:
            lines.append(f"{split}: {entry['cut']['documents']} documents cut into {entry['cut']['pieces']} pieces")
        for name, longer in entry.get("longer", {}).items():
            lines.append(f"{split}: {longer['documents']} documents, {longer['tokens']} tokens, in longer rows: {name}")
        for reason, number in entry["dropped"].items():
            lines.append(f"{split}: {number} documents dropped ({reason}), {entry['dropped_tokens']} tokens")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    args = vars(_parser().parse_args(argv))
    source, output, splits, overwrite = (args.pop(name) for name in ("input", "output", "split", "overwrite"))
    try:
        info = pack(source, output, PackOptions(**args), splits, overwrite, show_progress=True)
        longer = {name for entry in info.splits.values() for name in entry.get("longer", {})}
        buckets = {name: read_info(Path(output, name)) for name in longer}
    except (ValueError, OSError) as e:
        sys.exit(f"pack_shards: {e}")
    except KeyboardInterrupt:
        print("pack_shards: interrupted; run the same command again", file=sys.stderr)
        sys.exit(130)
    print(summary(info))
    for name in sorted(buckets, key=lambda name: buckets[name].length):
        print(f"{Path(output, name)}:\n{summary(buckets[name])}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input", required=True, action="append", help="directory that build_shards wrote, may repeat: all as one")
    add("--output", required=True, help="directory for the packed shards")
    add("--length", type=int, required=True, help="tokens a row")
    add("--split", action="append", default=[], help="split to pack, may repeat; default: all")
    add("--seed", type=int, default=0, help="order of documents")
    add("--overlong", choices=OVERLONG, default="error", help="documents longer than a row")
    add("--bucket_lengths", type=_lengths, default=(), help="tokens of longer rows for --overlong=bucket: 2048,8192")
    add("--beyond_buckets", choices=BEYOND, default="error", help="documents that are longer than these rows too")
    add("--top_up", default="", help="group, such as text, that also fills the room in other rows")
    add("--unit_tokens", type=int, default=PackOptions.unit_tokens, help="tokens packed at once")
    add("--overwrite", action="store_true", help="replace what is in the output")
    return parser


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers of tokens such as 2048,8192, got {text!r}") from None


if __name__ == "__main__":
    main()
