"""`python -m lmlib.book.pipeline`: execute what changed and build the site into `_build/html`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from filelock import FileLock

from lmlib.book import settings
from lmlib.book.pipeline import execute, site
from lmlib.book.pipeline.contents import chapters


def make_book(root: Path, profile: str, seed: int, force: bool) -> int:
    """Run every step; returns the exit status."""
    began = time.monotonic()
    build = root / "_build"
    executed = build / ("executed" if profile == "quick" else f"executed-{profile}")
    site.install_scripts(root)
    parameters: dict[str, str | int] = {"profile": profile, "seed": seed}
    results = execute.execute_all(root, chapters(root), executed, parameters, force)
    failed = [result.chapter.name for result in results if result.failure]
    if failed:
        print(f"{len(failed)} of {len(results)} chapters failed: {', '.join(failed)}. No site was built.")
        print(f"As far as they ran, they are in {build / 'failed'}.")
        return 1
    site.stage(root, executed, results, build / "stage")
    built = site.build(root, build / "stage", build / "html")
    ran = sum(result.executed for result in results)
    print(
        f"{ran} of {len(results)} chapters executed, site {'built' if built else 'unchanged'}, "
        f"{time.monotonic() - began:.0f} s.\n"
        f"The book is in {build / 'html'}. To read it with everything live: make serve"
    )
    return 0


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Command line of the pipeline."""
    parser = argparse.ArgumentParser(prog="python -m lmlib.book.pipeline", description=__doc__)
    parser.add_argument(
        "--profile", choices=sorted(execute.PATIENCE), default="quick", help="size of the runs"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--force", action="store_true", help="execute also the chapters that have not changed"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        root = settings.root()
        (root / "_build").mkdir(exist_ok=True)
        with FileLock(root / "_build" / "pipeline.lock"):
            return make_book(root, args.profile, args.seed, args.force)
    except (FileNotFoundError, ValueError, site.SiteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; what was finished is kept.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
