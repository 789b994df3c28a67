"""Which measures a task gets: those asked for, or the toy world's own where its scenes are there, or the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ar_omni_jax.documents import Document, DocumentError
from ar_omni_jax.evaluation.dialogue_kinds import DIALOGUE_TASKS
from ar_omni_jax.evaluation.judges.embedders import load_embedder
from ar_omni_jax.evaluation.judges.picture_features import load_feature_extractor
from ar_omni_jax.evaluation.judges.plugins import JudgeError
from ar_omni_jax.evaluation.judges.recognizers import SpeechRecognizer, ToyRecognizer, load_recognizer
from ar_omni_jax.evaluation.manifest import is_toy
from ar_omni_jax.evaluation.measures import Measure
from ar_omni_jax.evaluation.measures.caption_cider import CaptionCider
from ar_omni_jax.evaluation.measures.clip_similarity import ClipSimilarity
from ar_omni_jax.evaluation.measures.picture_distance import PictureDistance
from ar_omni_jax.evaluation.measures.toy_attributes import ToyAttributes
from ar_omni_jax.evaluation.measures.toy_dialogues import ToyAnswers, ToyDialoguePictures
from ar_omni_jax.evaluation.measures.word_error_rate import WordErrorRate
from data_pipelines.toyworld.scene import Scene

METRICS = {  # in the order in which they are printed
    "asr": ("wer",),
    "tts": ("wer",),
    "caption": ("attributes", "cider"),
    "t2i": ("attributes", "clip", "fid"),
    "chat_text": ("correct",),
    "chat_speech": ("correct",),
    "chat_spoken": ("correct",),
    "chat_image": ("attributes",),
}
SPOKEN = ("tts", "chat_spoken")
KNOWN = tuple(dict.fromkeys(name for names in METRICS.values() for name in names))


def select(
    documents: Mapping[str, Sequence[Document]],
    wanted: Sequence[str],
    root: Path,
    *,
    recognizer: str | None = None,
    normalizer: str | None = None,
    clip: str = "clip",
    fid: str = "cleanfid",
    listen: bool = True,
) -> dict[str, list[Measure]]:
    """{task: measures, the first of which gives the task's own figure}; tasks without documents or measures left out.

    Args:
      documents: by task. wanted: names of METRICS; none means each task's usual one. root: of relative paths.
      recognizer, clip, fid: judges as on the command line. normalizer: of `metrics.normalizers`. None: pocketsphinx
        and "words" for the toy world, Whisper and "whisper" otherwise. listen: False judges no speech.
    Raises JudgeError for judges that cannot be had and metrics that no document's task has; DocumentError where the
    toy world's are asked for documents without scenes.
    """
    present = {task: rows for task, rows in documents.items() if rows and (listen or task not in SPOKEN)}
    names = {task: _names(task, rows, wanted) for task, rows in present.items()}
    idle = [name for name in wanted if not any(name in found for found in names.values())]
    if idle or not any(names.values()):
        tasks = ", ".join(present) or "that is judged"
        raise JudgeError(f"--metrics={','.join(idle)}: not of task {tasks}; a task's metrics: {_overview()}")
    make = {
        "correct": lambda task, toy: ToyAnswers(
            task, _answers_recognizer(recognizer) if task == "chat_spoken" else None
        ),
        "attributes": lambda task, toy: ToyDialoguePictures() if task == "chat_image" else ToyAttributes(task),
        "cider": lambda task, toy: CaptionCider(),
        "clip": lambda task, toy: ClipSimilarity(load_embedder(clip), root),
        "fid": lambda task, toy: PictureDistance(load_feature_extractor(fid), root),
        "wer": lambda task, toy: WordErrorRate(
            normalizer or ("words" if toy else "whisper"),
            load_recognizer(recognizer or ("pocketsphinx" if toy else "whisper")) if task == "tts" else None,
        ),
    }
    return {task: [make[name](task, is_toy(present[task])) for name in found] for task, found in names.items() if found}


def _names(task: str, documents: Sequence[Document], wanted: Sequence[str]) -> list[str]:
    own = task in DIALOGUE_TASKS or is_toy(documents)
    usual = ["wer"] if task in ("asr", "tts") else [METRICS[task][0 if own else 1]]
    names = [name for name in METRICS[task] if name in wanted] if wanted else usual
    without = [d.id for d in documents if not _is_scene(d.meta.get("scene"))]
    if "attributes" in names and without:
        raise DocumentError(
            f"document {without[0]!r} ({len(without)} in all): meta.scene is missing or damaged; attributes can "
            "be judged in the toy world's pictures and captions alone"
        )
    return names


def _is_scene(record: Any) -> bool:
    try:
        Scene.from_json(record)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    return True


def _answers_recognizer(name: str | None) -> SpeechRecognizer:
    """Who listens to spoken answers: pocketsphinx with the grammar of the toy world's answers, or the one asked for."""
    if name not in (None, "pocketsphinx"):
        return load_recognizer(name)
    from data_pipelines.toyworld.replies import answers_grammar

    return ToyRecognizer(answers_grammar(), "pocketsphinx with the grammar of the dialogues' answers")


def _overview() -> str:
    return "; ".join(f"{task}: {', '.join(names)}" for task, names in METRICS.items())
