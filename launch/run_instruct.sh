#!/usr/bin/env bash
# Instruction tuning (stage 2) on the toy world, start to end, after launch/run_local.sh: make dialogues, tokenize,
# pack, train from the main job's weights with loss on answers only, evaluate before and after, write a page. Run it
# again after an interruption: finished steps are kept and training resumes from its last checkpoint.
#
#   bash launch/run_instruct.sh
#   WORKDIR=runs/instruct-long FROM=runs/long STEPS=4000 SCENES=40000 bash launch/run_instruct.sh
#   bash launch/run_instruct.sh --config.optimizer.peak_lr=5e-4    further arguments go to training
#
# Relative paths count from the checkout's root, wherever the command is given.
#   FROM     folder of the main job: its train/ is where this one starts, its toy/test.jsonl shows what is forgotten
#            (default: runs/toyworld)
#   WORKDIR  where everything is written (default: runs/instruct)
#   CONFIG   training configuration      (default: configs/instruct_toyworld.py)
#   SCENES   dialogues to make           (default: 6000)
#   STEPS    training steps              (default: the configuration's)
#   LIMIT    held-out documents a task in the evaluation (default: 64)
#   VENV     virtual environment         (default: .venv)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
FROM=${FROM:-runs/toyworld}
WORKDIR=${WORKDIR:-runs/instruct}
CONFIG=${CONFIG:-configs/instruct_toyworld.py}
SCENES=${SCENES:-6000}
LIMIT=${LIMIT:-64}
started=$SECONDS
if ! [ "$LIMIT" -ge 2 ] 2>/dev/null; then # chance is another document's answer
  echo "LIMIT=$LIMIT: give a number of at least 2" >&2
  exit 2
fi
for needed in train/checkpoints toy/test.jsonl; do
  if ! [ -e "$FROM/$needed" ]; then
    echo "FROM=$FROM has no $needed: run the main job first (bash launch/run_local.sh), or name its WORKDIR" >&2
    exit 2
  fi
done

step() { printf '\n==> [%d:%02d] %s\n' $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$*"; }

# Whatever is wrong with a folder or a setting is said now, not after minutes of making data.
mkdir -p "$WORKDIR"
WORKDIR=$(cd "$WORKDIR" && pwd)
FROM=$(cd "$FROM" && pwd)
. launch/environment.sh demo
settings=(--config="$CONFIG" --workdir="$WORKDIR/train" --config.data.path="$WORKDIR/packed")
settings+=(--config.train.init_from="$FROM/train" ${STEPS:+--config.train.steps="$STEPS"} "$@")
follows=$(python -m ar_omni_jax.main "${settings[@]}" --check)
printf '%s\n' "$follows"
length=$(sed -n 's/^rows: \([0-9]*\) tokens.*/\1/p' <<<"$follows")

step "making $SCENES dialogues"
python -m data_pipelines.toyworld --dialogues --output="$WORKDIR/toy" --size="$SCENES"

for split in train validation test; do
  step "tokenizing the $split split"
  dropout=0 # of prompts, in training alone: guidance must not be unlearned
  [ "$split" != train ] || dropout=0.1
  python -m data_pipelines.build_shards --source=manifest --input="$WORKDIR/toy/$split.jsonl" \
    --output="$WORKDIR/shards" --split="$split" --prompt_dropout="$dropout"
done

step "packing documents into rows"
python -m data_pipelines.pack_shards --input="$WORKDIR/shards" --output="$WORKDIR/packed" --length="$length"
python -m data_pipelines.inspect_shards --input="$WORKDIR/packed" --output="$WORKDIR/inspect"

step "training"
python -m ar_omni_jax.main "${settings[@]}"

evaluate() { # CHECKPOINT OUTPUT ARGUMENTS...
  local checkpoint=$1 output=$2
  shift 2
  python -m ar_omni_jax.evaluate --checkpoint="$checkpoint" --limit="$LIMIT" --output="$WORKDIR/evaluation/$output" "$@"
}
dialogues=(--task=dialogues --data="$WORKDIR/toy/test.jsonl" --temperature=0.3)
one_shot=(--task=all --data="$FROM/toy/test.jsonl" --temperature=0.7 --text_guidance=1.5) # as in the main job
step "evaluating dialogues: this model, then the one it started from"
evaluate "$WORKDIR/train" dialogues "${dialogues[@]}" --systems=chance,ceiling,truth
evaluate "$FROM/train" dialogues_before "${dialogues[@]}" --no_baselines
step "evaluating the first stage's tasks: this model, then the one it started from"
evaluate "$WORKDIR/train" one_shot "${one_shot[@]}" --systems=chance,ceiling,truth
evaluate "$FROM/train" one_shot_before "${one_shot[@]}" --no_baselines

step "writing the page"
python -m ar_omni_jax.evaluation.instruct_page --run="$WORKDIR" --output="$WORKDIR/report"

step "done"
printf -v train %q "$WORKDIR/train" # words that a shell reads as one, whatever the folder is called
printf -v python %q "$venv/bin/python"
cat <<EOF
page         $WORKDIR/report/index.html
scores       $WORKDIR/evaluation/{dialogues,dialogues_before,one_shot,one_shot_before}/evaluation.md
answers      $WORKDIR/evaluation/dialogues/{chat_text,chat_speech,chat_spoken,chat_image}/ (text, PNG, WAV)
checkpoints  $WORKDIR/train
ask it       $python -m ar_omni_jax.generate --checkpoint=$train --task=chat_image --temperature=0.3 --speech=REQUEST.wav
EOF
