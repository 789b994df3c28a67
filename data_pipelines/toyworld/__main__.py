"""The command `python -m data_pipelines.toyworld --output=DIR --size=N`, with `--dialogues` for instruction tuning."""

import argparse
import sys
import time

from data_pipelines.toyworld.build import ToyWorldError, build, build_dialogues
from data_pipelines.toyworld.espeak import SpeechError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.toyworld",
        description="Make the toy world: pictures, speech and text of simple scenes, with manifests of documents. "
        "Run the same command again to finish an interrupted one.",
    )
    parser.add_argument("--output", required=True, help="folder to make; empty, or of an interrupted run")
    size_help = "number of scenes (on two cores about 0.01 s each that is spoken of, 0.0005 s each that is not)"
    parser.add_argument("--size", type=int, required=True, help=size_help)
    parser.add_argument("--seed", type=int, default=0, help="another seed makes another world (default 0)")
    parser.add_argument("--workers", type=int, default=2, help="processes; never changes the result (default 2)")
    parser.add_argument("--spoken_share", type=float, help="share of the scenes that are also spoken of (default 1)")
    parser.add_argument(
        "--dialogues", action="store_true", help="make dialogues instead, one a scene, for instruction tuning"
    )
    one_shot_help = "share of the dialogues with one question of the first stage beside them (default 0.25)"
    parser.add_argument("--one_shot_share", type=float, help=one_shot_help)
    options = parser.parse_args(arguments)
    mine, other = ("one_shot_share", "spoken_share") if options.dialogues else ("spoken_share", "one_shot_share")
    if getattr(options, other) is not None:
        parser.error(f"--{other} is for a world {'without' if options.dialogues else 'with'} --dialogues")
    share = {} if getattr(options, mine) is None else {mine: getattr(options, mine)}
    make = build_dialogues if options.dialogues else build
    start = time.monotonic()
    try:
        summary = make(options.output, options.size, options.seed, options.workers, **share)
    except (ToyWorldError, SpeechError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    documents = sum(sum(counts.values()) for counts in summary["documents"].values())
    print(
        f"{options.output}: {documents} documents, {summary['images']} images, {summary['utterances']} utterances "
        f"({summary['speech_hours']:.2f} hours of speech), in {time.monotonic() - start:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
