#!/usr/bin/env bash
# The main job on one machine, start to end: install, make the toy world's files, tokenize, pack, train, evaluate,
# write samples (PNG, WAV, text) and a report page with plots. Run it again after an interruption: finished steps are
# kept and training resumes from its last checkpoint.
#
#   bash launch/run_local.sh                                  27 minutes on 2 CPU cores
#   WORKDIR=runs/long STEPS=10000 SCENES=64000 bash launch/run_local.sh     a longer run
#   bash launch/run_local.sh --config.optimizer.peak_lr=1e-3  further arguments go to training
#
# Relative paths count from the checkout's root, wherever the command is given.
#   WORKDIR  where everything is written (default: runs/toyworld)
#   CONFIG   training configuration      (default: configs/toyworld.py)
#   SCENES   scenes in the data set      (default: 32000)
#   SPOKEN   share of them also spoken of (default: 0.25; speech takes nearly all of the time that data take)
#   STEPS    training steps              (default: the configuration's)
#   LIMIT    held-out documents a task in the evaluation (default: 64)
#   VENV     virtual environment         (default: .venv)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
WORKDIR=${WORKDIR:-runs/toyworld}
CONFIG=${CONFIG:-configs/toyworld.py}
SCENES=${SCENES:-32000}
SPOKEN=${SPOKEN:-0.25}
LIMIT=${LIMIT:-64}
decoding=(--temperature=0.7 --text_guidance=1.5) # of the pictures: greedy tasks do not heed them
started=$SECONDS
if ! [ "$LIMIT" -ge 2 ] 2>/dev/null; then # chance is another document's answer
  echo "LIMIT=$LIMIT: give a number of at least 2" >&2
  exit 2
fi

step() { printf '\n==> [%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$*"; }

# Whatever is wrong with a folder or a setting is said now, not after minutes of making data.
mkdir -p "$WORKDIR"
WORKDIR=$(cd "$WORKDIR" && pwd)
. launch/environment.sh demo
settings=(--config="$CONFIG" --workdir="$WORKDIR/train" --config.data.path="$WORKDIR/packed")
settings+=(${STEPS:+--config.train.steps="$STEPS"} "$@")
follows=$(python -m ar_omni_jax.main "${settings[@]}" --check)
printf '%s\n' "$follows"
length=$(sed -n 's/^rows: \([0-9]*\) tokens.*/\1/p' <<<"$follows")

step "making the toy world: $SCENES scenes with captions and pictures, a share of $SPOKEN with speech"
python -m data_pipelines.toyworld --output="$WORKDIR/toy" --size="$SCENES" --spoken_share="$SPOKEN"

for split in train validation test; do
  step "tokenizing the $split split"
  dropout=0 # of prompts, in training alone: pictures are made with guidance, which needs to know them unprompted
  [ "$split" != train ] || dropout=0.1
  python -m data_pipelines.build_shards --source=manifest --input="$WORKDIR/toy/$split.jsonl" \
    --output="$WORKDIR/shards" --split="$split" --prompt_dropout="$dropout"
done

step "packing documents into rows"
python -m data_pipelines.pack_shards --input="$WORKDIR/shards" --output="$WORKDIR/packed" --length="$length"
python -m data_pipelines.inspect_shards --input="$WORKDIR/packed" --output="$WORKDIR/inspect"

step "training"
python -m ar_omni_jax.main "${settings[@]}"

step "evaluating on held-out scenes and voices"
python -m ar_omni_jax.evaluate --checkpoint="$WORKDIR/train" --data="$WORKDIR/toy/test.jsonl" \
  --task=all --limit="$LIMIT" "${decoding[@]}" --output="$WORKDIR/evaluation"

step "writing the report"
python -m ar_omni_jax.evaluation.report --run="$WORKDIR" --output="$WORKDIR/report"

step "done"
printf -v train %q "$WORKDIR/train" # words that a shell reads as one, whatever the folder is called
printf -v python %q "$venv/bin/python"
cat <<EOF
report       $WORKDIR/report/index.html
scores       $WORKDIR/evaluation/evaluation.md
answers      $WORKDIR/evaluation/{caption,t2i,asr,tts}/ (text, PNG, WAV)
checkpoints  $WORKDIR/train
TensorBoard  tensorboard --logdir=$train   (pip install tensorboard)
ask it       $python -m ar_omni_jax.generate --checkpoint=$train --task=t2i ${decoding[*]} --text="a large red circle at the top left"
EOF
