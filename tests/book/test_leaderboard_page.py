"""The leaderboard's page is made from entries whose hash is right, and shows their numbers."""

import json
import shutil
from pathlib import Path

import pytest

from lmlib.book.pipeline.leaderboard import leaderboard_page
from lmlib.book.records import RESULTS
from lmlib.training.leaderboard import read_entry
from lmlib.training.sweep import LADDER


def test_shows_every_entry_and_every_rung() -> None:
    page = leaderboard_page(RESULTS / "leaderboard", RESULTS)
    entries = [read_entry(path) for path in (RESULTS / "leaderboard").glob("*.json")]
    assert len(entries) >= 2
    assert any(entry["hardware"]["gpu"] is None for entry in entries)
    for entry in entries:
        assert f"{entry['loss']:.4f}" in page
        assert f"## {entry['class']}" in page
        assert f"`{entry['data']['val_sha256'][:12]}`" in page
        assert f" ({entry['date']})\n  - {entry['loss']:.4f}\n" in page
        assert f"  - {entry['flops']:.2e}\n  - {entry['start_seconds']:.0f}\n" in page
    assert page.count("<lm-plot") == len({(entry["class"], entry["data"]["val_sha256"]) for entry in entries})
    assert all(label.split(",")[0] in page for label, _ in LADDER)


def test_a_changed_entry_stops_the_build(tmp_path: Path) -> None:
    copy = shutil.copytree(RESULTS / "leaderboard", tmp_path / "leaderboard")
    path = next(copy.glob("*.json"))
    entry = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(entry | {"loss": 0.5}), encoding="utf-8")
    with pytest.raises(ValueError, match="changed after it was signed"):
        leaderboard_page(copy, RESULTS)
