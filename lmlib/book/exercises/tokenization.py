"""The exercises of chapter 1, in its order: from what text is, over BPE itself, to measuring a tokenizer."""

from lmlib.book.exercises.machinery import register
from lmlib.book.exercises.tokenization_bpe import COUNT_PAIRS, ENCODE, ENCODE_STREAM, MERGE, TRAIN
from lmlib.book.exercises.tokenization_measure import COMPRESSION, THROUGHPUT, TOKEN_FILE
from lmlib.book.exercises.tokenization_text import (
    BROKEN_DECODER,
    CODE_POINTS,
    DECODE_UTF8,
    ENCODED_SIZES,
    PRE_TOKENS,
    SPECIAL_TOKENS,
)

register(
    CODE_POINTS,
    ENCODED_SIZES,
    BROKEN_DECODER,
    DECODE_UTF8,
    COUNT_PAIRS,
    MERGE,
    TRAIN,
    ENCODE,
    SPECIAL_TOKENS,
    PRE_TOKENS,
    COMPRESSION,
    THROUGHPUT,
    TOKEN_FILE,
    ENCODE_STREAM,
)
