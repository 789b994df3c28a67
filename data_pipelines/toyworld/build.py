"""Writes a toy world: PNG and WAV files, a manifest for each split, and `dataset.json` when all is done.

Every file appears at once and complete (written under another name, then renamed), so a build that was killed goes on
where it stopped, and its result is the same byte for byte, with any number of workers.
"""

import collections
import concurrent.futures
import contextlib
import fcntl
import io
import json
import multiprocessing
import os
import pathlib
import threading
import wave
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import tqdm

from data_pipelines.toyworld.documents import VOICES, ImageJob, Plan, SpeechJob, make_plan, split_sizes
from data_pipelines.toyworld.drawing import IMAGE_SIZE, draw
from data_pipelines.toyworld.espeak import SAMPLE_RATE, Synthesizer
from data_pipelines.toyworld.instruct import make_dialogue_plan
from data_pipelines.toyworld.language import vocabulary_words

VERSION = 2  # of the data: raise it when the same arguments make other files
DIALOGUES_VERSION = 1  # likewise
SMALLEST_SIZE = 8
_PARTIAL = ".partial"
_JOBS_AT_ONCE = 32
_MEDIA_FOLDERS = ("images", "speech")


class ToyWorldError(Exception):
    """The toy world cannot be built as asked; the message says why and what to do."""


def build(
    output: str | os.PathLike,
    size: int,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
    spoken_share: float = 1.0,
) -> dict:
    """Makes a toy world of `size` scenes in the folder `output`, or finishes one that was interrupted.

    Args:
        output: folder, made if missing; must be empty or hold a toy world of the same arguments.
        size: number of scenes, at least 8; about 3 files and 6 documents each, 1 and 3 where nothing is spoken.
        seed: another seed, another world. Splits agree between seeds: no scene trains in one and tests in another.
        workers: processes; changes the time only.
        progress: shows a bar on standard error.
        spoken_share: share of the scenes, in [0, 1], that are also spoken of. Speech takes nearly all of the time and
            disk, so a lower share buys many more pictures for the same cost.

    Returns:
        What `dataset.json` says.

    Raises:
        ToyWorldError: for bad arguments, or a folder that is in use, holds other things or cannot be written.
    """
    _check_arguments(size, workers, "spoken_share", spoken_share)
    header = {"dataset": "toyworld", "version": VERSION, "size": size, "seed": seed, "spoken_share": spoken_share}
    return _write_world(output, header, lambda: make_plan(size, seed, spoken_share), workers, progress)


def build_dialogues(
    output: str | os.PathLike,
    size: int,
    seed: int = 0,
    workers: int = 2,
    progress: bool = True,
    one_shot_share: float = 0.25,
) -> dict:
    """Makes `size` dialogues for instruction tuning (`instruct.make_dialogue_plan`); as `build` otherwise.

    Args:
        one_shot_share: share of the scenes, in [0, 1], that also bring one question of the first training stage.
    """
    _check_arguments(size, workers, "one_shot_share", one_shot_share)
    header = {"dataset": "toyworld dialogues", "version": DIALOGUES_VERSION, "size": size, "seed": seed}
    header["one_shot_share"] = one_shot_share
    return _write_world(output, header, lambda: make_dialogue_plan(size, seed, one_shot_share), workers, progress)


def _check_arguments(size: int, workers: int, share: str, value: float) -> None:
    if size < SMALLEST_SIZE:
        raise ToyWorldError(f"--size={size} is too small for three splits; give at least {SMALLEST_SIZE}")
    if workers < 1:
        raise ToyWorldError(f"--workers={workers}: give at least 1")
    if not 0 <= value <= 1:
        raise ToyWorldError(f"--{share}={value}: give a share from 0 to 1")


def _write_world(
    output: str | os.PathLike, header: dict, make: Callable[[], Plan], workers: int, progress: bool
) -> dict:
    folder = pathlib.Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            return _build(folder, header, make, workers, progress)
    except BrokenProcessPool as error:
        raise ToyWorldError(
            "a worker died, perhaps for want of memory; run the same command again, with --workers=1"
        ) from error
    except OSError as error:
        raise ToyWorldError(
            f"cannot write the toy world to {folder}: {error.strerror or error}. "
            "Give --output a folder that you may write to, on a disk with room."
        ) from error


def _build(folder: pathlib.Path, header: dict, make: Callable[[], Plan], workers: int, progress: bool) -> dict:
    finished = _check_folder(folder, header)
    if finished is not None:
        return finished
    _write_json(folder / "dataset.json", header | {"complete": False})
    for name in _MEDIA_FOLDERS:
        (folder / name).mkdir(exist_ok=True)
        for leftover in (folder / name).glob(f"*{_PARTIAL}"):
            leftover.unlink()
    plan = make()
    seconds = _make_media(folder, plan, workers, progress)
    for split, records in plan.records.items():
        lines = [json.dumps(_with_seconds(record, seconds), ensure_ascii=False) for record in records]
        _write_bytes(folder / f"{split}.jsonl", ("\n".join(lines) + "\n").encode())
    summary = header | {"complete": True} | _counts(plan, header["size"], seconds)
    _write_json(folder / "dataset.json", summary)
    return summary


def _check_folder(folder: pathlib.Path, header: dict) -> dict | None:
    """What `dataset.json` says if the same world is finished there; None if there is work to do."""
    path = folder / "dataset.json"
    if not path.exists():
        strange = sorted(entry.name for entry in folder.iterdir() if entry.name != path.name + _PARTIAL)
        if strange:
            raise ToyWorldError(
                f"{folder} holds other files ({', '.join(strange[:3])}) and no dataset.json; "
                "give --output a new or empty folder"
            )
        return None
    try:
        found = json.loads(path.read_text())
        differing = [key for key in header if found.get(key) != header[key]]
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ToyWorldError(f"{path} is not a toy world's dataset.json ({error}); give another --output") from error
    if differing:
        have = ", ".join(f"{key}={found.get(key)!r}" for key in differing)
        want = ", ".join(f"{key}={header[key]!r}" for key in differing)
        raise ToyWorldError(
            f"{folder} already holds a toy world with {have}, and you asked for {want}; "
            "give another --output, or remove the folder"
        )
    return found if found.get("complete") else None


def _make_media(folder: pathlib.Path, plan: Plan, workers: int, progress: bool) -> dict[str, float]:
    """Makes the media files that are missing. Returns the seconds of each WAV file."""
    jobs = [*plan.images, *plan.speech]
    batches = [(str(folder), jobs[start : start + _JOBS_AT_ONCE]) for start in range(0, len(jobs), _JOBS_AT_ONCE)]
    seconds: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(
            tqdm.tqdm(total=len(jobs), desc="toy world", unit="file", disable=not progress, mininterval=1)
        )
        if workers == 1:
            results = map(_run_batch, batches)
        else:
            pool = concurrent.futures.ProcessPoolExecutor(
                min(workers, len(batches)), multiprocessing.get_context("spawn"), _end_with_parent
            )
            stack.callback(pool.shutdown, cancel_futures=True)
            results = pool.map(_run_batch, batches)
        for (_, batch), durations in zip(batches, results, strict=True):
            seconds.update(durations)
            bar.update(len(batch))
    return seconds


def _end_with_parent() -> None:
    """Starts a thread that ends this worker when the parent dies, even by SIGKILL; else it would wait for ever."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_batch(batch: tuple[str, list[ImageJob | SpeechJob]]) -> dict[str, float]:
    folder, jobs = batch
    durations = {}
    for job in jobs:
        path = pathlib.Path(folder, job.path)
        if isinstance(job, ImageJob):
            if not path.exists() or path.stat().st_size == 0:
                _write_bytes(path, png_bytes(job))
        else:
            durations[job.path] = _make_wav(path, job)
    return durations


def _make_wav(path: pathlib.Path, job: SpeechJob) -> float:
    """Makes the file unless it is there. Returns its duration in seconds."""
    try:
        return _wav_seconds(path)
    except (FileNotFoundError, EOFError, wave.Error):  # missing, or cut short when the machine went down
        _write_bytes(path, wav_bytes(job))
        return _wav_seconds(path)


def _wav_seconds(path: pathlib.Path) -> float:
    with wave.open(str(path)) as file:
        return round(file.getnframes() / file.getframerate(), 4)


def png_bytes(job: ImageJob) -> bytes:
    """The picture as a PNG file's bytes."""
    buffer = io.BytesIO()
    draw(job.scene).save(buffer, format="PNG")
    return buffer.getvalue()


def wav_bytes(job: SpeechJob) -> bytes:
    """The utterance as a WAV file's bytes: 16 kHz, mono, 16 bit."""
    samples = Synthesizer().speak(job.text, job.voice, job.words_per_minute, job.pitch)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def _with_seconds(record: dict, seconds: dict[str, float]) -> dict:
    for facts in record["meta"].get("speech", []):
        facts["seconds"] = seconds[facts["path"]]
    return record


def _counts(plan: Plan, size: int, seconds: dict[str, float]) -> dict:
    tasks = {split: collections.Counter(r["task"] for r in records) for split, records in plan.records.items()}
    return {
        "scenes": split_sizes(size),
        "documents": {split: dict(sorted(counter.items())) for split, counter in tasks.items()},
        "images": len(plan.images),
        "utterances": len(plan.speech),
        "speech_hours": round(sum(seconds.values()) / 3600, 4),
        "image_size": IMAGE_SIZE,
        "sample_rate": SAMPLE_RATE,
        "voices": {split: list(voices) for split, voices in VOICES.items()},
        "words": vocabulary_words(),
    }


@contextlib.contextmanager
def _locked(folder: pathlib.Path):
    """Keeps a second build out of the folder; the lock goes when this process does, however it ends."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ToyWorldError(f"another process is building in {folder}; wait for it, or stop it") from error
        yield
    finally:
        os.close(handle)


def _write_json(path: pathlib.Path, content: dict) -> None:
    _write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def _write_bytes(path: pathlib.Path, content: bytes) -> None:
    partial = path.with_name(path.name + _PARTIAL)
    partial.write_bytes(content)
    os.replace(partial, path)
