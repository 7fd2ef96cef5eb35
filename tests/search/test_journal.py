"""The journal: what is in it after a kill, and when it is not used."""

import json
import logging

import pytest

from amct_pytorch.search.journal import Journal

IDENTITY = {"model weights": "abc", "config": {"batch_num": 1, "conv": {"quant_enable": True}}}


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "net_journal.jsonl")


def filled(path):
    journal = Journal(path, IDENTITY)
    for number in range(3):
        journal.append("trial", number=number)
    return journal


def numbers(journal):
    return [n for n in reversed(range(10)) if journal.find("trial", number=n)]


def test_nothing_is_on_disk_before_the_first_step(path, tmp_path):
    Journal(path, IDENTITY)
    assert list(tmp_path.iterdir()) == []


def test_each_step_is_on_disk_when_append_returns(path):
    journal = Journal(path, IDENTITY)
    for number in range(3):
        journal.append("trial", number=number)
        assert numbers(Journal(path, IDENTITY)) == list(reversed(range(number + 1)))


def test_a_resumed_journal_goes_on(path):
    filled(path)
    Journal(path, IDENTITY).append("trial", number=3)
    assert numbers(Journal(path, IDENTITY)) == [3, 2, 1, 0]


def test_every_cut_loses_the_last_step_at_most(path):
    filled(path)
    with open(path, "rb") as file:
        whole = file.read()
    for length in range(len(whole)):
        with open(path, "wb") as file:
            file.write(whole[:length])
        # A line without its end of line is whole already.
        complete = [json.loads(x) for x in whole[:length].split(b"\n") if is_json(x)]
        journal = Journal(path, IDENTITY)
        assert len(numbers(journal)) == max(len(complete) - 1, 0)
        journal.append("trial", number=9)
        assert 9 in numbers(Journal(path, IDENTITY))


def is_json(text):
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


DAMAGES = [
    b"\x00\xff\x00",
    b'{"step": 1}',
    b'{"step": "trial"}',
    b"[]",
    b"null",
    b'"trial"',
    b"[" * 100_000,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda line: repr(line[:20]))
def test_a_damaged_line_ends_it_with_a_warning(path, caplog, damage):
    filled(path)
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")
    lines[2] = damage
    with open(path, "wb") as file:
        file.write(b"\n".join(lines))
    assert numbers(Journal(path, IDENTITY)) == [0]
    assert f"{path}:3: the line is damaged" in caplog.text


def test_a_value_that_was_changed_is_damage(path):
    filled(path)
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content.replace(b'"number": 1', b'"number": 8'))
    assert numbers(Journal(path, IDENTITY)) == [0]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe", b"{}", b'{"format": 99}'])
def test_what_is_no_journal_starts_anew(path, content):
    with open(path, "wb") as file:
        file.write(content)
    journal = Journal(path, IDENTITY)
    journal.append("trial", number=5)
    assert numbers(Journal(path, IDENTITY)) == [5]


def test_another_search_is_not_resumed_and_what_changed_is_told(path, caplog):
    filled(path)
    changed = {"model weights": "xyz", "config": {"batch_num": 2, "conv": {"quant_enable": True}}}
    with caplog.at_level(logging.WARNING):
        journal = Journal(path, changed)
    assert numbers(journal) == []
    assert "model weights (was abc, is xyz)" in caplog.text
    assert "config.batch_num (was 1, is 2)" in caplog.text
    assert "quant_enable" not in caplog.text


def test_the_file_of_another_search_stays_until_the_first_step(path):
    filled(path)
    Journal(path, {"model weights": "xyz"})
    assert numbers(Journal(path, IDENTITY)) == [2, 1, 0]


def test_resume_false_starts_anew(path):
    filled(path)
    journal = Journal(path, IDENTITY, resume=False)
    journal.append("trial", number=7)
    assert numbers(Journal(path, IDENTITY)) == [7]


def test_remove(path, tmp_path):
    journal = filled(path)
    journal.remove()
    journal.remove()
    assert list(tmp_path.iterdir()) == []
