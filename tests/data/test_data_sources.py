"""Corpora from local files; clear answers where there is none."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import socket
import time

import pytest

from lmlib.data import load, sources

TEXTS = ["One day, it rained.\nA lot.", 'He said "no", twice.', "Ünïcode 🙂 and, commas"]


def _write(path, kind):
    opener = {"gz": gzip.open, "xz": lzma.open}.get(path.suffix[1:], open)
    with opener(path, "wt", encoding="utf-8", newline="") as stream:
        if kind == "txt":
            stream.write("<|endoftext|>".join(TEXTS) + "<|endoftext|>\n")
        elif kind == "jsonl":
            stream.writelines(json.dumps({"text": text}) + "\n" for text in TEXTS)
        else:
            writer = csv.writer(stream)
            writer.writerows([["id", "text"], *([i, text] for i, text in enumerate(TEXTS))])


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
@pytest.mark.parametrize("packing", ["", ".gz", ".xz"])
def test_files_give_back_their_documents(tmp_path, kind, packing):
    path = tmp_path / f"corpus.{kind}{packing}"
    _write(path, kind)
    assert [document.text for document in load(path=path)] == TEXTS
    assert [document.text for document in load(path=path, size=1)] == TEXTS[:1]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "corpus.parquet")
    assert [document.text for document in load(path=tmp_path / "corpus.parquet")] == TEXTS


def test_a_folder_is_read_in_order_of_names(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    assert [document.text for document in load(path=tmp_path)] == ["first", "second"]


@pytest.mark.parametrize("chunk", [1, 5, 13])
def test_marks_across_chunk_borders(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(sources, "_CHUNK", chunk)
    _write(tmp_path / "corpus.txt", "txt")
    assert [document.text for document in load(path=tmp_path / "corpus.txt")] == TEXTS


def test_offline_the_hub_is_refused_at_once_with_a_way_on(monkeypatch):
    def no_network(*_, **__):
        raise OSError("no network")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(socket, "create_connection", no_network)
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=r"tinystories.*path=.*micro-world"):
        load("tinystories")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConnectionError, match=r"HF_HUB_OFFLINE.*path=.*micro-world"):
        load("gsm8k")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("x.pdf", b"", r"path must end in .*x\.pdf"),
        ("x.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("x.jsonl", b'{"text": "a"}\n{oops\n', "line 2"),
        ("x.csv", b"id,body\n1,a\n", '"text", got id, body'),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, named):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=named):
        list(load(path=tmp_path / name))


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"name must be .*'tinystorys'"):
        load("tinystorys")
    with pytest.raises(ValueError, match="size must be given"):
        load("micro-world")
    with pytest.raises(ValueError, match=r"size.*-1"):
        load("micro-world", size=-1)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(path=tmp_path / "nowhere")


def test_the_default_is_the_micro_world():
    assert [document.kind for document in load(size=3)] == ["story"] * 3
