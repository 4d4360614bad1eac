"""Make the virtual environment and install the book into it; do nothing when that is already done.

Run by path (`python3 lmlib/book/pipeline/install.py`) before anything is installed, possibly by a Python
that is too old, so: standard library only, and no syntax newer than the oldest Python that must get the
message. A stamp in the environment holds a hash of what was installed from; a marker tells of an install
that was cut off, after which the environment is rebuilt, since pip takes a half-copied package for whole.
"""

import argparse
import hashlib
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OLDEST, NEWEST_TESTED = (3, 11), (3, 13)
SOURCES = ("pyproject.toml", "constraints.txt")


def refuse_old_python() -> None:
    """Exit with a sentence that says what to do unless this Python can run the book."""
    have = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST:
        sys.exit(
            f"The book needs Python 3.11 or newer; {sys.executable} is {have}. "
            "Install a newer one and name it: make book PYTHON=python3.12"
        )
    if sys.version_info[:2] > NEWEST_TESTED:
        print(f"Note: the book is tested on Python 3.11 to 3.13; this is {have}.", flush=True)


def wanted_stamp(extras: str, pip_args: str) -> str:
    """Hash of everything that decides what gets installed."""
    digest = hashlib.sha256(f"{sys.version}\0{sys.platform}\0{extras}\0{pip_args}\0{ROOT}".encode())
    for name in SOURCES:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def make_environment(venv: Path, clear: bool) -> Path:
    """Create the virtual environment unless a working one of this Python is there; returns its python."""
    python = venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    ask = "import pip, sys; print(sys.version)"
    if not clear and python.exists():
        answer = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip() == sys.version:
            return python
    print(f"Making a virtual environment in {venv} ...", flush=True)
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=False)
    if made.returncode:
        sys.exit(
            f"{sys.executable} could not make a virtual environment. On Debian and Ubuntu, venv is "
            f"a package of its own: apt install python3.{sys.version_info[1]}-venv"
        )
    return python


def install(venv: Path, extras: str, pip_args: str) -> None:
    """Install the book with `extras` from the pinned constraints, unless the stamp says it is done."""
    stamp, marker = venv / "lm-book.stamp", venv / "lm-book.installing"
    wanted = wanted_stamp(extras, pip_args)
    if stamp.exists() and stamp.read_text() == wanted and not marker.exists():
        return
    python = make_environment(venv, clear=marker.exists())
    print("Installing the book's packages (several minutes the first time) ...", flush=True)
    marker.touch()
    stamp.unlink(missing_ok=True)
    command = [str(python), "-m", "pip", "install", "--editable", f"{ROOT}[{extras}]"]
    command += ["--constraint", str(ROOT / "constraints.txt"), *shlex.split(pip_args)]
    code = subprocess.run(command, check=False).returncode
    if code == 1:  # pip itself gave up, and put back what it had begun; anything else cut it off midway
        marker.unlink()
    if code:
        sys.exit(f"pip could not install the book (exit status {code}); what it said is above.")
    stamp.write_text(wanted)
    marker.unlink()


def main() -> None:
    """Command line of this file; `make` calls it."""
    refuse_old_python()
    parser = argparse.ArgumentParser(description="Install the book into a virtual environment.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--extras", default="book,test")
    parser.add_argument("--pip-args", default="", help="further options for pip install, as one string")
    args = parser.parse_args()
    try:
        install(args.venv.absolute(), args.extras, args.pip_args)
    except KeyboardInterrupt:
        sys.exit("\nInterrupted; the next run rebuilds the environment.")


if __name__ == "__main__":
    main()
