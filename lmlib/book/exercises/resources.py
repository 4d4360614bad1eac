"""The exercises of chapter 4, in its order: from the bytes of a number to the activations of a model."""

from lmlib.book.exercises.machinery import register
from lmlib.book.exercises.resources_numbers import ACCUMULATE, BYTES_ALIVE, FLOAT_VALUE, MODEL_STATES
from lmlib.book.exercises.resources_plans import (
    ACTIVATION_BYTES,
    COUNT_PARAMETERS,
    HOW_LONG,
    KV_BYTES,
    MATMUL_FLOPS,
    MFU,
    ROOFLINE_TIME,
    TRAINING_FLOPS,
)

register(
    MODEL_STATES,
    FLOAT_VALUE,
    ACCUMULATE,
    BYTES_ALIVE,
    COUNT_PARAMETERS,
    MATMUL_FLOPS,
    TRAINING_FLOPS,
    ROOFLINE_TIME,
    HOW_LONG,
    MFU,
    KV_BYTES,
    ACTIVATION_BYTES,
)
