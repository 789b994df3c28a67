"""Dialogues for instruction tuning: pictures shown, spoken of, asked about, drawn and changed, over several turns.

This is pure planning, as in `documents.py`: every word, voice and file name follows from the seed. The kinds, by what
the last question and answer are made of:

    chat_text    a picture and written questions     -> written answers
    chat_speech  spoken questions (a picture shown, a scene told, or neither) -> written answers
    chat_spoken  a picture and spoken questions      -> spoken answers
    chat_image   spoken requests to draw and change  -> transcript and picture
"""

import dataclasses
import random

from data_pipelines.toyworld import dialogues
from data_pipelines.toyworld.documents import GROUPS, Plan, SceneWriter, SpeechJob, new_scene, split_sizes
from data_pipelines.toyworld.language import EDITS, REQUESTS, caption, describe
from data_pipelines.toyworld.replies import Reply, different_questions
from data_pipelines.toyworld.scene import COLORS, POSITIONS, SIZES, SPLITS, Scene, random_scene_of_split, split_of

KINDS = {"chat_text": 0.15, "chat_speech": 0.3, "chat_spoken": 0.25, "chat_image": 0.3}  # shares of the dialogues
TASK_OF_KIND = {"chat_text": "chat", "chat_speech": "chat_speech", "chat_spoken": "chat", "chat_image": "chat_image"}
ABOUT = {"picture": 0.5, "told": 0.3, "facts": 0.2}  # what spoken questions with written answers are about
ONE_SHOT = ("caption", "t2i", "asr", "tts")
MOST_ROUNDS = 3
# Whoever asks, the assistant has one voice; the same sentence of it is one file.
ASSISTANT = {"voice": "en-us", "words_per_minute": 180, "pitch": 50}
_EDIT_TRIES = 100


def make_dialogue_plan(size: int, seed: int, one_shot_share: float = 0.25) -> Plan:
    """Every document of `size` dialogues, one a scene; a pure function of its arguments.

    Args:
        size: number of dialogues. Splits are those of the toy world: a scene trains in no world and tests in another.
        seed: another seed, other dialogues.
        one_shot_share: share of the scenes, in [0, 1], that also bring one question of the first training stage (a
            caption, picture, transcript or utterance), so that these are not forgotten.
    """
    plan = Plan({split: [] for split in SPLITS}, [], [])
    spoken: set[str] = set()
    for split, count in split_sizes(size).items():
        seen: set[Scene] = set()
        for index in range(count):
            name = f"{split}-{index:06d}"
            rng = random.Random(f"toyworld/dialogues/{seed}/{name}")
            writer = DialogueWriter(plan, name, split, new_scene(rng, split, seen), rng, spoken)
            plan.records[split].append(writer.dialogue())
            if rng.random() < one_shot_share:
                plan.records[split].append(writer.one_shot())
    return plan


@dataclasses.dataclass(frozen=True)
class Change:
    """A request to change a picture, what it then shows, and which attribute ("color", "size", "place") of which."""

    request: str
    scene: Scene
    kind: str


def change(scene: Scene, split: str, rng: random.Random) -> Change | None:
    """A request to change one object, named by its shape where there are several; None where no change is possible.

    Colours and places stay different within the scene, and the changed scene belongs to the same split.
    """
    shapes = [item.shape for item in scene.objects]
    alone = [item for item in scene.objects if shapes.count(item.shape) == 1]
    values = {"color": list(COLORS), "size": list(SIZES), "place": list(POSITIONS)}
    for _ in range(_EDIT_TRIES if alone else 0):
        old, kind = rng.choice(alone), rng.choice(list(EDITS))
        field = "position" if kind == "place" else kind
        new = dataclasses.replace(old, **{field: rng.choice(values[kind])})
        others = [item for item in scene.objects if item != old]
        free = field == "size" or all(getattr(item, field) != getattr(new, field) for item in others)
        changed = Scene((*others, new), scene.background)
        if new != old and free and split_of(changed) == split:
            templates = [t for t in EDITS[kind] if not others or "{shape}" in t]
            return Change(describe(rng.choice(templates), new, rng), changed, kind)
    return None


class DialogueWriter(SceneWriter):
    """Makes the dialogue of one scene. spoken: paths of the assistant's utterances that the plan has already."""

    def __init__(self, plan: Plan, name: str, split: str, scene: Scene, rng: random.Random, spoken: set[str]):
        super().__init__(plan, name, split, scene, rng)
        self._spoken = spoken

    def dialogue(self) -> dict:
        """The record of a dialogue of a kind by lot."""
        kind = self.rng.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "chat_image":
            return self._drawing()
        rounds = self.rng.randint(1, MOST_ROUNDS)
        if kind == "chat_speech":
            about = self.rng.choices(list(ABOUT), list(ABOUT.values()))[0]
            if about == "told" and len(self.scene.objects) <= 2:  # three would take six seconds to say
                return self._told(rounds)
            if about == "facts":
                return self._questions(kind, different_questions(None, rounds, self.rng), "facts", shown=False)
        return self._questions(kind, different_questions(self.scene, rounds, self.rng), "picture")

    def _questions(self, kind: str, replies: list[Reply], about: str, shown: bool = True) -> dict:
        """Questions and answers, about a picture in the first turn or about facts."""
        turns, speech = [], []
        for number, reply in enumerate(replies):
            picture = [self._image("", self.scene)] if shown and number == 0 else []
            asked = {"text": reply.question} if kind == "chat_text" else self._user(number, reply.question, speech)
            answer = self._assistant(reply.spoken, speech) if kind == "chat_spoken" else {"text": reply.written}
            turns += [("user", [*picture, asked]), ("assistant", [answer])]
        return self._dialogue(kind, turns, speech, replies[-1], about=about)

    def _told(self, rounds: int) -> dict:
        """A scene told in speech, acknowledged in text, then questions about it."""
        told = caption(self.scene, self.rng, with_background=False)
        speech: list[dict] = []
        turns = [("user", [self._user(0, told, speech)])]
        turns.append(("assistant", [{"text": dialogues.acknowledgement(self.scene)}]))
        replies = different_questions(self.scene, max(1, rounds - 1), self.rng)
        for number, reply in enumerate(replies, 1):
            turns.append(("user", [self._user(number, reply.question, speech)]))
            turns.append(("assistant", [{"text": reply.written}]))
        return self._dialogue("chat_speech", turns, speech, replies[-1], about="told")

    def _drawing(self) -> dict:
        """A picture asked for in speech, and up to two changes; a request names no background, so it is white."""
        scene = self.scene
        if len(scene.objects) > 2:
            scene = random_scene_of_split(self.rng, self.split, max_objects=2)
        scene = Scene(scene.objects, "white")
        request = self.rng.choice(REQUESTS) + caption(scene, self.rng, with_background=False)
        turns: list[tuple] = []
        speech: list[dict] = []
        facts = {"question": "draw", "scene": scene.to_json()}
        for number in range(self.rng.randint(1, MOST_ROUNDS)):
            if number:
                edit = change(scene, self.split, self.rng)
                if edit is None:
                    break
                request, facts = edit.request, {"question": f"change {edit.kind}", "before": scene.to_json()}
                scene = edit.scene
                facts["scene"] = scene.to_json()
            turns.append(("user", [self._user(number, request, speech)]))
            turns.append(("assistant", [{"text": request}, self._image(f"-{number}", scene)]))
        return self._finished("chat_image", turns, speech=speech, accepted=[request], about="picture", **facts)

    def _dialogue(self, kind: str, turns: list, speech: list[dict], last: Reply, about: str) -> dict:
        heard = {"speech": speech} if speech else {}
        said = last.spoken if kind == "chat_spoken" else last.written
        accepted = list(dict.fromkeys([said, *last.accepted]))
        return self._finished(kind, turns, question=last.kind, accepted=accepted, about=about, **heard)

    def _finished(self, kind: str, turns: list, **meta) -> dict:
        record = self._record(TASK_OF_KIND[kind], kind.replace("_", "-"), turns, kind=kind, **meta)
        record["group"] = "image" if kind in ("chat_text", "chat_image") else "speech"
        return record

    def _user(self, number: int, text: str, speech: list[dict]) -> dict:
        """A part in the voice of this dialogue's user; its facts are added to `speech`."""
        part, facts = self._speech(f"-d{number}", text)
        speech.append(facts)
        return part

    def _assistant(self, text: str, speech: list[dict]) -> dict:
        """A part in the assistant's voice; its facts are added to `speech`."""
        path = f"speech/assistant-{text.replace(' ', '-')}.wav"
        if path not in self._spoken:
            self._spoken.add(path)
            self.plan.speech.append(SpeechJob(path, text, **ASSISTANT))
        speech.append({"path": path, "transcript": text, **ASSISTANT})
        return {"speech": path}

    def one_shot(self) -> dict:
        """One question of the first stage, about this dialogue's scene."""
        task = self.rng.choice(ONE_SHOT)
        if task in ("caption", "t2i"):
            image, text = self._image("-s", self.scene), {"text": caption(self.scene, self.rng)}
            sides = (image, text) if task == "caption" else (text, image)
            return self._record(task, task, [("user", [sides[0]]), ("assistant", [sides[1]])])
        if len(self.scene.objects) <= 2 and self.rng.random() < 0.5:
            words = caption(self.scene, self.rng, with_background=False)
        else:
            words = dialogues.short_utterance(self.scene, self.rng)[1]
        part, facts = self._speech("-s", words)
        sides = (part, {"text": words}) if task == "asr" else ({"text": words}, part)
        turns = [("user", [sides[0]]), ("assistant", [sides[1]])]
        return self._record(task, task, turns, speech=[facts])


assert set(ONE_SHOT) | set(TASK_OF_KIND.values()) <= set(GROUPS)
