"""Documents of the toy world: for each scene its caption, picture and speech tasks, text lines and dialogues.

This is pure planning: it decides every word, voice and file name from the seed, and draws and speaks nothing.
"""

import dataclasses
import random

from data_pipelines.toyworld import dialogues
from data_pipelines.toyworld.language import caption
from data_pipelines.toyworld.scene import SPLITS, Scene, random_scene_of_split

# Voices of one split are heard in no other. espeak-ng names: language, then a variant of the speaker.
VOICES = {
    "train": ("en-us", "en-us+f3", "en-us+f5", "en-gb", "en-gb+f5", "en-gb+m3"),
    "validation": ("en-gb+f3",),
    "test": ("en-us+m3",),
}
WORDS_PER_MINUTE = (165, 215)
PITCH = (35, 65)

HELD_OUT_SHARE = 0.05  # of the scenes, for each of validation and test
HELD_OUT_FLOOR = 48
SECOND_UTTERANCE_SHARE = 0.7
CHAT_SPEECH_SHARE = 0.25
CHAT_IMAGE_SHARE = 0.2
_DUPLICATE_TRIES = 50

GROUPS = {
    "text": "text",
    "caption": "image",
    "t2i": "image",
    "asr": "speech",
    "tts": "speech",
    "chat_image": "image",
    "chat_speech": "speech",
    "chat": "image",
}


@dataclasses.dataclass(frozen=True)
class SpeechJob:
    """One WAV file to make: what is said, by whom, and how."""

    path: str
    text: str
    voice: str
    words_per_minute: int
    pitch: int


@dataclasses.dataclass(frozen=True)
class ImageJob:
    """One PNG file to make."""

    path: str
    scene: Scene


@dataclasses.dataclass
class Plan:
    """What to make: manifest records by split, and the media files they mention."""

    records: dict[str, list[dict]]
    images: list[ImageJob]
    speech: list[SpeechJob]


def split_sizes(size: int) -> dict[str, int]:
    """Scenes in each split: 5 % for validation and for test, but some dozens (a quarter at most); the rest trains."""
    held_out = max(round(HELD_OUT_SHARE * size), min(HELD_OUT_FLOOR, size // 4))
    return {"train": size - 2 * held_out, "validation": held_out, "test": held_out}


def make_plan(size: int, seed: int, spoken_share: float = 1.0) -> Plan:
    """Every document of a toy world of `size` scenes; a pure function of its arguments.

    Args:
        size: number of scenes.
        seed: another seed, another world.
        spoken_share: share of the scenes, in [0, 1], that are also spoken of: they have recognition, synthesis and
            spoken dialogues beside their caption, picture and text line. Scenes and captions do not depend on it.
    """
    plan = Plan({split: [] for split in SPLITS}, [], [])
    for split, count in split_sizes(size).items():
        seen: set[Scene] = set()
        for index in range(count):
            name = f"{split}-{index:06d}"
            rng = random.Random(f"toyworld/{seed}/{name}")
            scene = new_scene(rng, split, seen)
            spoken = random.Random(f"toyworld/{seed}/{name}/spoken").random() < spoken_share
            plan.records[split] += SceneWriter(plan, name, split, scene, rng).documents(spoken)
    return plan


def new_scene(rng: random.Random, split: str, seen: set[Scene]) -> Scene:
    """A scene that the split does not have yet; a repeated one only where new ones have become rare.

    The number of objects is drawn once. Scenes of one object are few (a thousand in training), and a large world that
    never repeated one would hardly have any: models then learn much later what a colour's name looks like.
    """
    scene = random_scene_of_split(rng, split)
    for _ in range(_DUPLICATE_TRIES):
        if scene not in seen:
            break
        scene = random_scene_of_split(rng, split, count=len(scene.objects))
    seen.add(scene)
    return scene


class SceneWriter:
    """Makes one scene's documents and enters their media files in the plan."""

    def __init__(self, plan: Plan, name: str, split: str, scene: Scene, rng: random.Random):
        self.plan, self.name, self.split, self.scene, self.rng = plan, name, split, scene, rng
        self.voice = rng.choice(VOICES[split])

    def documents(self, spoken: bool) -> list[dict]:
        records = self._picture_documents()
        if not spoken:
            return [*records, self._text_document()]
        records += [*self._speech_documents(), self._text_document()]
        if self.rng.random() < CHAT_SPEECH_SHARE:
            records.append(self._chat("chat_speech", dialogues.spoken_questions(self.scene, self.rng)))
        if self.rng.random() < CHAT_IMAGE_SHARE:
            records.append(self._chat("chat_image", dialogues.picture_requests(self.scene, self.split, self.rng)))
        return records

    def _record(self, task: str, suffix: str, turns, **meta) -> dict:
        return {
            "id": f"{self.name}-{suffix}",
            "task": task,
            "group": GROUPS[task],
            "turns": [{"role": role, "parts": parts} for role, parts in turns],
            "meta": {"split": self.split, "scene": self.scene.to_json(), **meta},
        }

    def _image(self, suffix: str, scene: Scene) -> dict:
        path = f"images/{self.name}{suffix}.png"
        self.plan.images.append(ImageJob(path, scene))
        return {"image": path}

    def _speech(self, suffix: str, text: str) -> tuple[dict, dict]:
        """(part, facts for meta) of a new utterance in this scene's voice, at a speed and pitch by lot."""
        path = f"speech/{self.name}{suffix}.wav"
        job = SpeechJob(path, text, self.voice, self.rng.randint(*WORDS_PER_MINUTE), self.rng.randint(*PITCH))
        self.plan.speech.append(job)
        facts = {
            "path": path,
            "transcript": text,
            "voice": job.voice,
            "words_per_minute": job.words_per_minute,
            "pitch": job.pitch,
        }
        return {"speech": path}, facts

    def _picture_documents(self) -> list[dict]:
        image = self._image("", self.scene)
        return [
            self._record(
                "caption",
                "caption",
                [("user", [image]), ("assistant", [{"text": caption(self.scene, self.rng)}])],
            ),
            self._record("t2i", "t2i", [("user", [{"text": caption(self.scene, self.rng)}]), ("assistant", [image])]),
        ]

    def _speech_documents(self) -> list[dict]:
        """Speech recognition and synthesis of the same one or two utterances."""
        if len(self.scene.objects) <= 2:
            utterances = [("caption", caption(self.scene, self.rng, with_background=False))]
        else:  # a spoken caption of three objects would take six seconds
            utterances = [("statement", dialogues.scene_statement(self.scene, self.rng))]
        if self.rng.random() < SECOND_UTTERANCE_SHARE:
            utterances.append(dialogues.short_utterance(self.scene, self.rng))
        records = []
        for number, (kind, text) in enumerate(utterances):
            part, facts = self._speech(f"-u{number}", text)
            heard, said = ("user", [part]), ("assistant", [part])
            records += [
                self._record(
                    "asr", f"asr{number}", [heard, ("assistant", [{"text": text}])], kind=kind, speech=[facts]
                ),
                self._record("tts", f"tts{number}", [("user", [{"text": text}]), said], kind=kind, speech=[facts]),
            ]
        return records

    def _text_document(self) -> dict:
        return self._record("text", "text", [("assistant", [{"text": self._text_line()}])])

    def _text_line(self) -> str:
        sentences = [dialogues.scene_statement(self.scene, self.rng), dialogues.fact(self.rng)]
        sentences += [caption(self.scene, self.rng)] if self.rng.random() < 0.3 else []
        sentences += [dialogues.fact(self.rng)] if self.rng.random() < 0.3 else []
        self.rng.shuffle(sentences)
        return ". ".join(sentences)

    def _chat(self, task: str, exchanges: list[dialogues.Exchange]) -> dict:
        """A dialogue in which the user speaks, and the assistant writes and sometimes draws."""
        turns, speech, scenes, answers = [], [], [], []
        suffix = task.removeprefix("chat_")
        for number, exchange in enumerate(exchanges):
            part, facts = self._speech(f"-{suffix}{number}", exchange.spoken)
            speech.append(facts)
            answers.append(exchange.text)
            reply = [{"text": exchange.text}]
            if exchange.scene is not None:
                reply.append(self._image(f"-{suffix}{number}", exchange.scene))
            scenes.append(None if exchange.scene is None else exchange.scene.to_json())
            turns += [("user", [part]), ("assistant", reply)]
        record = self._record(task, task.replace("_", "-"), turns, speech=speech, answers=answers, scenes=scenes)
        if scenes[0] is not None:  # the first picture, which need not be that of the caption
            record["meta"]["scene"] = scenes[0]
        return record
