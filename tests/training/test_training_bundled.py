"""The bundled model: it is the recorded one, scores what its record says, and its stories hold together."""

import json
import shutil
from pathlib import Path

import pytest

from lmlib.data import micro_world
from lmlib.training import bundle, bundled
from lmlib.training.bundle import LARGEST, rescore, score, tell
from lmlib.training.coherence import check_stories, check_story, closing_accuracy
from lmlib.training.config import read


def test_scores_what_its_record_says() -> None:
    model, tokenizer = bundled.load()
    made = bundled.record()
    assert 3e6 <= sum(each.numel() for each in model.parameters()) <= 5e6
    assert sum((bundled.FOLDER / name).stat().st_size for name in made["files"]) <= LARGEST
    found = score(model, tokenizer)
    assert found["nats_per_token"] == pytest.approx(made["score"]["nats_per_token"], abs=2e-3)
    assert found["bits_per_byte"] == pytest.approx(made["score"]["bits_per_byte"], abs=1e-3)
    assert found["bits_per_byte"] > made["truth_bits_per_byte"]  # no model can know more than the teller


def test_its_preset_says_what_was_run() -> None:
    assert read("bundled", []).to_toml() == (bundled.FOLDER / "recipe.toml.txt").read_text(encoding="utf-8")


def test_its_stories_are_coherent() -> None:
    model, tokenizer = bundled.load()
    told = tell(model, tokenizer, 60)
    assert len(told) >= 58  # the others ran into the end of the context
    report = check_stories(told)
    assert report.grammatical >= 0.99 * report.sentences > 1000
    assert report.true_facts >= 0.95 * report.facts > 40
    assert report.right_sums >= 0.95 * report.sums > 40
    assert report.distinct_pairs >= 0.95 * report.pairs > 200
    assert report.introduced_actors >= 0.9 * report.actors > 100
    assert report.kept_goals >= 0.9 * report.goals > 50
    truth = micro_world(0, split="test", n_documents=40).documents()
    right, lines = closing_accuracy(model, tokenizer, truth)
    assert right >= 0.85 * lines > 50


def test_rating_a_folder_anew_keeps_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = shutil.copytree(bundled.FOLDER, tmp_path / "copy")
    made = bundled.record() | {"score": None, "coherence": None}
    (copy / "record.json").write_text(json.dumps(made), encoding="utf-8")
    monkeypatch.setattr(bundle, "TEST_STORIES", 4)
    rated = rescore(copy, "abc")
    assert bundled.record(copy) == rated
    assert {key: rated[key] for key in ("files", "training", "device")} == {
        key: bundled.record()[key] for key in ("files", "training", "device")
    }
    assert rated["coherence"]["stories"]["asked"] == 4
    assert 0.1 < rated["score"]["bits_per_byte"] < 0.25
    assert rated["rated"]["commit"] == "abc"


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


def test_coherence_sees_who_meets_themselves_and_who_comes_from_nowhere() -> None:
    true = check_stories(micro_world(5, split="test", n_documents=60).texts())
    assert true.distinct_pairs == true.pairs > 200
    assert true.introduced_actors == true.actors > 120
    assert true.kept_goals == true.goals == 60
    opening = "Hugo was a brave boy and lived in the barn.\n\nOne hot day, Hugo met {} in the barn. "
    asked = '"Where is the red kite?" asked Hugo. "I have it," said {}. '
    count = check_story(opening.format("Wim") + asked.format("Wim"))
    assert (count.pairs, count.distinct_pairs, count.actors, count.introduced_actors) == (2, 2, 2, 2)
    count = check_story(opening.format("Hugo") + asked.format("Hugo"))
    assert (count.pairs, count.distinct_pairs, count.actors, count.introduced_actors) == (2, 0, 1, 1)
    count = check_story(opening.format("Wim") + asked.format("Ines"))  # nobody told us of Ines
    assert (count.pairs, count.distinct_pairs, count.actors, count.introduced_actors) == (2, 2, 3, 2)
    late = "Ines held the kite tight. Just then Ines came along, the shy girl whom everyone knew."
    count = check_story(opening.format("Wim") + late)
    assert (count.actors, count.introduced_actors) == (3, 2)


def test_coherence_sees_a_forgotten_goal() -> None:
    lost = 'But Hugo looked worried. "My yellow wagon is gone!"'
    found = "At last Hugo found his yellow wagon. It had been in the barn all along."
    pie = "In the end Hugo had all 10 plums, and the kitchen smelled wonderful."
    assert [
        (count.goals, count.kept_goals)
        for count in map(check_story, (f"{lost}\n\n{found}", f"{lost}\n\n{pie}", lost, pie))
    ] == [(1, 1), (1, 0), (1, 0), (0, 0)]
