"""The bundled model: it is the recorded one, still scores what its record says, and tells stories."""

import shutil
from pathlib import Path

import pytest

from lmlib.data import micro_world
from lmlib.training import bundled
from lmlib.training.bundle import LARGEST, score, tell
from lmlib.training.coherence import check_stories, check_story


def test_scores_what_its_record_says() -> None:
    model, tokenizer = bundled.load()
    made = bundled.record()
    assert 3e6 <= sum(each.numel() for each in model.parameters()) <= 5e6
    assert sum((bundled.FOLDER / name).stat().st_size for name in made["files"]) <= LARGEST
    found = score(model, tokenizer)
    assert found["nats_per_token"] == pytest.approx(made["score"]["nats_per_token"], abs=2e-3)
    assert found["bits_per_byte"] == pytest.approx(made["score"]["bits_per_byte"], abs=1e-3)
    assert found["bits_per_byte"] > made["truth_bits_per_byte"]  # no model can know more than the teller


def test_its_sentences_are_of_the_world() -> None:
    model, tokenizer = bundled.load()
    told = tell(model, tokenizer, 4)
    report = check_stories(told)
    assert report.grammatical > 0.95 * report.sentences


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(bundled.FOLDER, tmp_path / "copy")
    (copy / "tokenizer.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr(bundled, "FOLDER", copy)
    with pytest.raises(ValueError, match="its sha256 differs from the record's"):
        bundled.load()


def test_coherence_knows_true_from_false() -> None:
    true = check_stories(micro_world(5, split="test", n_documents=60).texts())
    assert true.grammatical == true.sentences
    assert true.true_facts == true.facts > 30
    assert true.right_sums == true.sums > 30
    false = check_story(
        "Hugo had just turned 99. The blue fish swam. "
        "Hugo saw 3 plums, and then 4 more, so there were 9 in all."
    )
    assert (false.sentences, false.grammatical) == (3, 2)
    assert (false.facts, false.true_facts) == (1, 0)
    assert (false.sums, false.right_sums) == (1, 0)
