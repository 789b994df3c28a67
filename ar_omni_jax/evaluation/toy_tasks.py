"""The toy world's tasks as the report pages know them: {task: (what is measured, unit, higher is better)}."""

from ar_omni_jax.evaluation.dialogue_kinds import DIALOGUE_TASKS
from ar_omni_jax.evaluation.manifest import JUDGED_TASKS, load_documents, truth_text
from ar_omni_jax.evaluation.measures.toy_dialogues import ANSWER_TITLES, PICTURE_TITLE
from ar_omni_jax.evaluation.results import TaskResult

__all__ = ["DIALOGUE_TASKS", "JUDGED_TASKS", "MEASURES", "TaskResult", "load_documents", "truth_text"]

MEASURES = {
    "caption": ("caption attributes right", "%", True),
    "t2i": ("image attributes read back", "%", True),
    "asr": ("ASR word error rate", "%", False),
    "tts": ("TTS word error rate", "%", False),
    **{kind: (title, "%", True) for kind, title in ANSWER_TITLES.items()},
    "chat_image": (PICTURE_TITLE, "%", True),
}
