"""A language of which the best possible loss is known, as token files for moesaic.

32 sources write 64 symbols. After a symbol one of four successors follows, with the probabilities
of FREQUENCIES; which four depends on the source and the symbol, save that for every other symbol
they are the same in all sources. A document is a token that names its source and 63 symbols. No
model can do better than FLOOR_BITS a symbol, and one that ignores the source stays well above it.
"""

import array
import math
import os
import random
import struct
import sys

SOURCES, SYMBOLS, LENGTH = 32, 64, 64
FREQUENCIES = (0.55, 0.25, 0.15, 0.05)
FLOOR_BITS = -sum(p * math.log2(p) for p in FREQUENCIES)
TRAIN_DOCUMENTS, VALIDATION_DOCUMENTS = 40000, 1024


def make_tables(draw):
    """By source and last symbol (or, at the start, the source's own token): four successors."""
    def successors():
        return draw.sample(range(SYMBOLS), len(FREQUENCIES))
    common = [successors() for _ in range(SYMBOLS)]
    return [[common[s] if s % 2 == 0 else successors() for s in range(SYMBOLS)] + [successors()]
            for _ in range(SOURCES)]


def make_document(tables, draw):
    source = draw.randrange(SOURCES)
    choices = draw.choices(range(len(FREQUENCIES)), FREQUENCIES, k=LENGTH - 1)
    tokens, last = [SYMBOLS + source], SYMBOLS
    for choice in choices:
        last = tables[source][last][choice]
        tokens.append(last)
    return tokens


def write_corpus(prefix, documents):
    """Megatron's indexed format: PREFIX.bin has tokens as uint16, PREFIX.idx where documents start."""
    count = len(documents)
    with open(prefix + ".bin", "wb") as file:
        for document in documents:
            array.array("H", document).tofile(file)
    with open(prefix + ".idx", "wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, count, count + 1))
        array.array("i", [LENGTH] * count).tofile(file)
        array.array("q", [2 * LENGTH * i for i in range(count)]).tofile(file)
        array.array("q", range(count + 1)).tofile(file)


def write_corpora(folder):
    """FOLDER/train and FOLDER/validation; the same in each call."""
    draw = random.Random(1)
    tables = make_tables(draw)
    os.makedirs(folder, exist_ok=True)
    for name, count in (("train", TRAIN_DOCUMENTS), ("validation", VALIDATION_DOCUMENTS)):
        documents = [make_document(tables, draw) for _ in range(count)]
        write_corpus(os.path.join(folder, name), documents)


if __name__ == "__main__":
    write_corpora(sys.argv[1])
