"""The toy world's four tasks as the report page knows them: {task: (what is measured, unit, higher is better)}."""

from ar_omni_jax.evaluation.manifest import JUDGED_TASKS, load_documents, truth_text
from ar_omni_jax.evaluation.results import TaskResult

__all__ = ["JUDGED_TASKS", "MEASURES", "TaskResult", "load_documents", "truth_text"]

MEASURES = {
    "caption": ("caption attributes right", "%", True),
    "t2i": ("image attributes read back", "%", True),
    "asr": ("ASR word error rate", "%", False),
    "tts": ("TTS word error rate", "%", False),
}
