"""The benchmark's parts on a small text: jobs agree, and the record has its form."""

import json

import pytest

from lmlib.tokenization import bench, fast
from lmlib.tokenization.bench_jobs import SEPARATOR

pytest.importorskip("numba", reason="the benchmark measures the Numba path")

DOCUMENTS = SEPARATOR.join(f"Document {n} says: don't panic, it's {n * 7} o'clock." for n in range(4000))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    (folder / "text.txt").write_text(DOCUMENTS)
    if not fast.is_compiled():
        fast.compile_kernels()
    return folder


def test_jobs_of_both_paths_agree(work):
    text, vocabulary = str(work / "text.txt"), str(work / "vocabulary.json")
    job = {"task": "train", "text": text, "vocab_size": 400, "n_workers": 1, "save": vocabulary}
    trained = [bench._run({**job, "engine": engine}, {}) for engine in ("numba", "python")]
    job = {"task": "encode", "text": text, "vocabulary": vocabulary}
    encoded = [bench._run({**job, "engine": engine}, {}) for engine in ("numba", "python", "tiktoken")]
    for results in (trained, encoded):
        assert len({result["digest"] for result in results}) == 1
        for result in results:
            assert 0 < result["seconds"] < result["wall"]
            assert 1e7 < result["peak"] < 1e9


def test_texts_are_cut_between_documents_and_described(work):
    described = bench._prepare([work / "text.txt"], work, len(DOCUMENTS) / 160e6)
    assert described["bytes"] == len(DOCUMENTS)
    train = (work / "train.txt").read_text()
    assert train.endswith(SEPARATOR)
    assert DOCUMENTS.startswith(train)
    assert not train.startswith((work / "unseen-10.txt").read_text())
    assert (work / "growth-250.txt").stat().st_size == pytest.approx(250e6 * len(DOCUMENTS) / 160e6, rel=0.01)
    with pytest.raises(SystemExit, match="this needs 150,000,000"):
        bench._prepare([work / "text.txt"], work, 1.0)


def test_a_failing_job_gives_its_error(work):
    result = bench._run({"task": "encode", "engine": "python", "text": "none", "vocabulary": "missing"}, {})
    assert "missing" in result["error"]


def note(name, digest="same", **other):
    return {"round": 0, "name": name, "seconds": 1.0, "wall": 2.0, "peak": 5, "digest": digest, **other}


def test_the_record_holds_every_sample_and_refuses_disagreement():
    notes = [note("train numba"), note("train numba"), note("encode numba, 10 MB"), note("a tiktoken")]
    notes[-1] = {"round": 0, "name": "a tiktoken", "error": "panicked"}
    measured = {"notes": notes, "texts": {}, "versions": {"numba": "1"}}
    made = bench.record(measured, "command")
    assert made["samples"]["train numba"] == {"unit": "s", "values": [2.0, 2.0]}
    assert made["samples"]["train numba, call"]["values"] == [1.0, 1.0]
    assert made["samples"]["train numba, peak memory"] == {"unit": "B", "values": [5, 5]}
    assert made["samples"]["encode numba, 10 MB"]["values"] == [1.0]
    assert made["about"]["failures"] == {"a tiktoken": "panicked"}
    assert json.loads(json.dumps(made)) == made
    notes.append(note("encode tiktoken, 10 MB", digest="other"))
    with pytest.raises(SystemExit, match="disagree on: encode, 10 MB"):
        bench.record(measured, "command")
