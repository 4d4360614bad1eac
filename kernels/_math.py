"""Arithmetic that several kernels share."""

from kernels._runtime import tl, triton


@triton.jit
def exp(x, PRECISE: tl.constexpr):
    """e^x of a float32. PRECISE: right to the last bits also where |x| is large.

    The GPU has an instruction for 2^t alone. With t = x log2(e) rounded, the rounding of t becomes a relative
    error of |t| 2^-24. PRECISE takes out the nearest whole power first: x - n ln(2), with ln(2) in two parts
    of which the first has so few bits that n times it is exact (Cody and Waite 1980). Results of 16 bits
    don't need it.
    """
    t = x * 1.4426950408889634
    if PRECISE:
        n = tl.minimum(tl.maximum(tl.floor(t + 0.5), -127.0), 128.0)
        rest = (x - n * 0.693359375) + n * 2.12194440054690583e-4
        power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)  # 2^n; 0 for -127
        return tl.exp2(rest * 1.4426950408889634) * power
    else:
        return tl.exp2(t)


@triton.jit
def divide(a, b, PRECISE: tl.constexpr):
    """a / b; PRECISE: rounded to nearest, else within two units in the last place."""
    if PRECISE:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def sigmoid(x, PRECISE: tl.constexpr):
    """1 / (1 + e^-x) of a float32."""
    return divide(1.0, 1.0 + exp(-x, PRECISE), PRECISE)
