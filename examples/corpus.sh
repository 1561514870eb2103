#!/usr/bin/env bash
# Makes the corpus of the examples under corpus/: the King James Bible (out of copyright, Debian
# packages bible-kjv and bible-kjv-text), one document a chapter, with a tokenizer of 4096 tokens.
# Does nothing when it is there already. Run it after the build, from anywhere.
#
#   corpus/text/*.txt   corpus/bpe.model   corpus/train.{bin,idx}   corpus/validation.{bin,idx}
#
# Environment: MOESAIC, the program (default: build/release/bin/moesaic).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
moesaic=${MOESAIC:-build/release/bin/moesaic}
text=corpus/text/bible.txt

[ -x "$moesaic" ] || { echo "corpus.sh: no program at $moesaic: build it first" >&2; exit 1; }

if [ ! -s "$text" ]; then
  command -v bible >/dev/null ||
    { echo "corpus.sh: install the packages bible-kjv and bible-kjv-text" >&2; exit 1; }
  mkdir -p corpus/text
  # A verse a line, "Gen1:1 In the beginning...": the reference goes, a blank line parts chapters.
  bible -f 'gen1:1-rev22:21' | awk '
    { split($1, reference, ":")
      if (NR > 1 && reference[1] != chapter) print ""
      chapter = reference[1]
      sub(/^[^ ]+ /, "")
      print }' >"$text.tmp"
  mv "$text.tmp" "$text"
fi

[ -s corpus/bpe.model ] ||
  "$moesaic" data tokenizer --input "$text" --vocabulary 4096 --output corpus/bpe.model

# The summary is kept: it holds the unigram entropy, which a trained model's loss is compared with.
if [ ! -s corpus/summary.json ] || [ ! -s corpus/train.idx ] || [ ! -s corpus/validation.idx ]; then
  "$moesaic" data prepare --tokenizer corpus/bpe.model --input "$text" \
    --document-separator blank-line --output corpus/train \
    --validation-output corpus/validation -o json >corpus/summary.json.tmp
  mv corpus/summary.json.tmp corpus/summary.json
fi
python3 - <<'PY'
import json
summary = json.load(open("corpus/summary.json"))
for part in ("train", "validation"):
    print("{path}: {documents} documents, {tokens} tokens, "
          "unigram entropy {unigram_entropy:.4f} nats".format(**summary[part]))
PY
