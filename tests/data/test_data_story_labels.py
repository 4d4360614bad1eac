"""What a story's labels say is what a reader finds in its text; its sums are right; it is made quickly."""

from __future__ import annotations

import re
import time
import zlib

import pytest

from lmlib.data import micro_world

DOCUMENTS = list(micro_world(11, n_documents=300))


def test_the_closing_paragraph_says_who_has_what_and_what_lies_where():
    things = 0
    for document in DOCUMENTS:
        ending = document.text.rpartition("\n\n")[2]
        held = re.findall(r"(?<=[.!?\"] )(\w+) had the (\w+ \w+)\.", ending)
        lying = re.findall(r"(?<=[.!?\"] )The (\w+ \w+) lay ([^.]+)\.", ending)
        assert {thing: name for name, thing in held} == document.labels["holders"]
        assert dict(lying) == document.labels["lying"]
        things += len(held) + len(lying)
    assert things > 500


def test_people_are_where_they_went_last():
    # A person who walked somewhere alone in the last sentence about going anywhere is there at the end.
    checked = 0
    for document in DOCUMENTS:
        last = document.text.split("\n\n")[-2]
        told = re.match(r"Soon (\w+) was ([^.]+)\.", last)
        if told and " home" not in last and "little house" not in last:
            assert document.labels["people"][told[1]] == told[2]
            checked += 1
    assert checked > 20


@pytest.mark.parametrize(
    ("pattern", "sign"),
    [
        (r"counted (\d+) \w+ in one basket and (\d+) in another\. That made (\d+)", 1),
        (r"saw (\d+) \w+, and then (\d+) more, so there were (\d+) in all", 1),
        (r"packed (\d+) \w+, added (\d+), and carried (\d+)", 1),
        (r"had (\d+) \w+ and gave (\d+) to \w+\. Then (\d+) were left", -1),
        (r"shared (\d+) \w+ with \w+: (\d+) for \w+, and (\d+) to keep", -1),
        (r"brought (\d+) \w+\. \w+ ate (\d+) of them, so (\d+) remained", -1),
        (r"It took (\d+) \w+, and \w+ had only (\d+)\. So (\d+) were missing", -1),
    ],
)
def test_sums_are_right(pattern, sign):
    sums = [tuple(map(int, found)) for document in DOCUMENTS for found in re.findall(pattern, document.text)]
    assert len(sums) > 10
    assert all(n + sign * m == result for n, m, result in sums)


def test_text_is_made_at_a_third_of_the_speed_of_zlib_or_more():
    # 10 MB/s is the aim; zlib -9 on the same core is the yardstick, so that a busy machine does not fail.
    def seconds(work):
        start = time.process_time()
        result = work()
        return time.process_time() - start, result

    rounds = []
    for seed in range(3):
        made, text = seconds(lambda seed=seed: "".join(micro_world(seed, n_bytes=1_000_000).texts()))
        packed, _ = seconds(lambda text=text: zlib.compress(text.encode(), 9))
        rounds.append(made / packed)
    assert min(rounds) < 3  # zlib -9 packs this text at about 30 MB/s where the generator makes 18 to 20
