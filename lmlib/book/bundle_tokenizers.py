"""Makes ``widgets/tokenization.json``: small vocabularies for the page and a measured curve of compression.

    python -m lmlib.book.bundle_tokenizers english.txt --about "what english.txt is"

The English text is cut in two: vocabularies learn from the first part, bytes per token are counted on the
last tenth, which they have not seen. Code is the standard library of the Python that runs this, with every
tenth file held out. The first merges of a large vocabulary are the merges of a small one, so one training
gives every size.
"""

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from lmlib.tokenization.tokenizer import Tokenizer
from lmlib.tokenization.trainer import from_merges, train_bpe

TARGET = Path(__file__).parent / "widgets" / "tokenization.json"
SIZES = [2**power for power in range(8, 18)]
BUNDLED = {"english": 8192, "code": 4096}
SEPARATOR = "<|endoftext|>"
VERSION = platform.python_version()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("english", type=Path, help=f"UTF-8 text, documents separated by {SEPARATOR}")
    parser.add_argument("--about", required=True, help="what the text is and where it comes from")
    options = parser.parse_args(arguments)

    text = options.english.read_text(encoding="utf-8")
    cut = text.index(SEPARATOR, len(text) * 9 // 10) + len(SEPARATOR)
    learned, held_out = {"english": [text[:cut]]}, {"english": text[cut:].replace(SEPARATOR, "")}
    code = standard_library()
    learned["code"] = [source for index, source in enumerate(code) if index % 10]
    held_out["code"] = "".join(code[::10])
    trained = {
        "english": train_bpe(learned["english"], SIZES[-1] + 1, [SEPARATOR]),
        "code": train_bpe(learned["code"], BUNDLED["code"] + 1, [SEPARATOR]),
    }
    made = {
        "recipe": {
            "command": f"python -m lmlib.book.bundle_tokenizers {options.english.name} --about …",
            "date": datetime.now(UTC).date().isoformat(),
            "commit": subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
            ).stdout.strip(),
            "python": VERSION,
            "texts": {
                "english": _about(options.about, learned["english"], held_out["english"]),
                "code": _about(f"standard library of CPython {VERSION}", learned["code"], held_out["code"]),
            },
        },
        "curve": [[size, _tokens(trained["english"], size, held_out["english"])] for size in SIZES],
        "merges": {name: _compact(trained[name], size) for name, size in BUNDLED.items()},
    }
    written = json.dumps(made, indent=0, separators=(",", ":")) + "\n"
    TARGET.write_text(written, encoding="utf-8")
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes", file=sys.stderr)


def standard_library() -> list[str]:
    """Sources of the standard library, tests left out, in the order of their names."""
    folder = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "encodings"}
    files = [
        file for file in sorted(folder.rglob("*.py")) if not left_out & {*file.relative_to(folder).parts}
    ]
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


def _about(what: str, learned: Sequence[str], held_out: str) -> dict[str, object]:
    joined = "".join(learned).encode()
    return {
        "what": what,
        "training_bytes": len(joined),
        "training_sha256": hashlib.sha256(joined).hexdigest(),
        "held_out_bytes": len(held_out.encode()),
        "held_out_sha256": hashlib.sha256(held_out.encode()).hexdigest(),
    }


def _tokens(tokenizer: Tokenizer, size: int, text: str) -> int:
    """Tokens that the text takes with the first ``size`` tokens of the vocabulary."""
    return len(from_merges(tokenizer.merges[: size - 256]).encode_to_numpy(text))


def _compact(tokenizer: Tokenizer, size: int) -> str:
    """Merges as pairs of ids, in the order learned: ``32 116 104 101 …``."""
    merges = tokenizer.merges[: size - 256]
    tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
    ids = {token: number for number, token in enumerate(tokens)}
    if len(ids) < len(tokens):
        raise ValueError("two merges make the same bytes, which pairs of bytes cannot tell apart")
    return " ".join(f"{ids[left]} {ids[right]}" for left, right in merges)


if __name__ == "__main__":
    main()
