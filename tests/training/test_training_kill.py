"""A training run that is killed, again and again, at moments that nobody chose."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("kill_runner.py")
KILLS, STEPS, INTERVAL = 50, 60, 3


@pytest.mark.distributed
def test_kills_never_cost_more_than_the_interval(tmp_path: Path) -> None:
    """After each of 50 kills the newest checkpoint is intact; all curves are those of a run left in peace."""
    if not hasattr(os, "fork"):
        pytest.skip("this system cannot fork a process")
    command = [sys.executable, str(RUNNER), str(tmp_path), str(KILLS), "1"]
    environment = {**os.environ, "PYTHONPATH": str(RUNNER.parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    kills = report["kills"]
    assert len(kills) == KILLS
    assert report["steps"] == STEPS
    for kill in kills:
        assert kill["problem"] is None, kill
        assert kill["newest"] == kill["claimed"], kill  # never a folder that only looks like a checkpoint
        assert kill["newest"] % INTERVAL == 0, kill
        assert kill["trained"] - kill["newest"] <= INTERVAL, kill
    # The moments must have been where it hurts, or nothing has been tested.
    assert sum(kill["saving"] > 0 for kill in kills) >= 5
    assert sum(kill["newest"] > 0 for kill in kills) >= KILLS // 2
    # Bit for bit: losses, random numbers, and in the end every tensor.
    assert report["finished"] >= 1
    assert report["wrong"] == []
