"""What task a dialogue is, by what is asked and answered in it, and the order that its turns must have."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ar_omni_jax.documents import DocumentError, Turn
from ar_omni_jax.vocabulary import Modality


def dialogue_task(asked: Collection[Modality], answered: Collection[Modality]) -> str:
    """chat_image where an image is answered, chat_speech where speech is asked and only text answered, else chat."""
    if Modality.IMAGE in answered:
        return "chat_image"
    return "chat_speech" if Modality.SPEECH in asked and Modality.SPEECH not in answered else "chat"


def task_of_turns(turns: Sequence[Turn], where: str) -> str:
    """`dialogue_task` of whole turns.

    Raises DocumentError naming `where` unless user and assistant alternate, from the user to an answer.
    """
    for number, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[number % 2]:
            raise DocumentError(
                f"{where}: message {number + 1} is the {turn.role}'s; user and assistant must take turns, user first"
            )
    if len(turns) % 2:
        raise DocumentError(f"{where}: the last message is the user's; there must be an answer to learn from")
    asked, answered = ({part.modality for turn in turns[i::2] for part in turn.parts} for i in (0, 1))
    return dialogue_task(asked, answered)
