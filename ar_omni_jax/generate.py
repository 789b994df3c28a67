"""Asks a checkpoint one thing and writes what it answers as text, PNG and WAV.

python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=t2i --text="a large red circle at the top left"
python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=tts --text="a small blue cross in the center"
python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=asr --speech=question.wav
python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=caption --image=picture.png
python -m ar_omni_jax.generate --checkpoint=runs/toyworld/train --task=chat_image --speech=request.wav
"""

from __future__ import annotations

from pathlib import Path

from absl import app, flags, logging

FLAGS = flags.FLAGS

# What a request of each task has to bring; a chat brings at least one of them.
NEEDS = {
    "t2i": {"text"},
    "tts": {"text"},
    "asr": {"speech"},
    "caption": {"image"},
    "chat_speech": {"speech"},
    "chat_image": {"speech"},
    "text": set(),
}

flags.DEFINE_string("checkpoint", None, "Directory of a training run.", required=True)
flags.DEFINE_enum("task", None, sorted(NEEDS), "What to do.", required=True)
flags.DEFINE_string("text", None, "The text of the request.")
flags.DEFINE_string("image", None, "An image file (PNG, JPEG, WebP …).")
flags.DEFINE_string("speech", None, "A sound file (WAV, FLAC …).")
flags.DEFINE_string("output", "generated", "Directory for the answer.")
flags.DEFINE_string("name", None, "Base name of the files (default: the task).")
flags.DEFINE_integer("seed", 0, "Seed of what is sampled; greedy tasks do not depend on it.")
flags.DEFINE_integer("step", None, "Checkpoint step (default: the newest).")


def request():
    """The Document that the flags describe; UsageError when a part is missing or does not belong to the task."""
    from ar_omni_jax.inference import user_document

    given = {name for name in ("text", "image", "speech") if getattr(FLAGS, name) is not None}
    needed = NEEDS[FLAGS.task]
    if given != needed:
        wanted = ", ".join(f"--{n}" for n in sorted(needed)) or "no text, image or speech"
        raise app.UsageError(f"--task={FLAGS.task} takes {wanted}; got {', '.join(sorted(given)) or 'nothing'}")
    for name in given - {"text"}:
        if not Path(getattr(FLAGS, name)).is_file():
            raise app.UsageError(f"--{name}={getattr(FLAGS, name)} is not a file")
    return user_document(FLAGS.task, text=FLAGS.text, image=FLAGS.image, speech=FLAGS.speech)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; quote --text")
    document = request()
    from ar_omni_jax.predictor import Predictor

    logging.set_verbosity(logging.WARNING)  # Orbax tells each of its steps

    predictor = Predictor.load(FLAGS.checkpoint, FLAGS.step)
    response = predictor.respond([document], seeds=[FLAGS.seed])[0]
    output = Path(FLAGS.output)
    record = response.save(output, FLAGS.name or FLAGS.task, predictor.sample_rate)
    if response.text:
        print(response.text)
    for name in record["files"]:
        print(f"wrote {output / name}")
    for problem in response.problems:
        print(f"note: {problem}")


if __name__ == "__main__":
    app.run(main)
