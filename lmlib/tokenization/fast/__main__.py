"""`python -m lmlib.tokenization.fast compile`: compile the fast path ahead of its first use."""

import sys
import time

from . import available, compile_kernels, is_compiled


def main(arguments: list[str]) -> int:
    """Compile if need be; the exit status."""
    if arguments != ["compile"]:
        print("usage: python -m lmlib.tokenization.fast compile", file=sys.stderr)
        return 2
    if not available():
        print(
            "Numba is not installed (pip install numba); the readable path serves without it", file=sys.stderr
        )
        return 1
    if is_compiled():
        print("compiled already")
        return 0
    start = time.perf_counter()
    compile_kernels()
    print(f"compiled in {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
