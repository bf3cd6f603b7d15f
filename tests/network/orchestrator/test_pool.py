"""Places at containers: who gets a job, what is said when nobody can, and that no place stays taken."""

import logging

import pytest

from whisper_byoc.errors import PeerBusy, PeerFailed, RequestRefused
from whisper_byoc.network.pool import STALE_S, Container, Pool


def pool(*capacities, name="a"):
    made = Pool()
    for number, capacity in enumerate(capacities):
        made.add(Container(name, f"http://c{number}", capacity)).is_ready()
    return made


def measured(container, free, fits):
    container.room, container.fits = len(container.slots) + free, fits


def test_a_job_goes_where_the_largest_share_is_free():
    made = pool(1, 3)
    assert [next(made.slots("a")).container.url[-1] for _ in range(4)] == ["1", "0", "1", "1"]
    with pytest.raises(PeerBusy, match="all 4 places are taken") as caught:
        next(made.slots("a"))
    assert (caught.value.status, caught.value.retry_after) == (503, 1)


def test_measured_places_go_in_proportion_and_what_was_sent_since_counts():
    made = pool(64, 64)
    slow, fast = made.of("a")
    measured(slow, 4, 4)
    measured(fast, 12, 12)
    slots = [next(made.slots("a")) for _ in range(8)]
    assert (len(slow.slots), len(fast.slots), made.free("a"), made.size("a")) == (2, 6, 8, 16)
    slots[0].free()
    assert made.free("a") == 9
    measured(fast, 0, 12)  # others than us have brought it jobs
    assert next(made.slots("a")).container is slow
    measured(slow, 0, 4)
    with pytest.raises(PeerBusy, match="all 16 places are taken"):
        next(made.slots("a"))
    assert next(made.slots("a", live=False)).container in (slow, fast)  # there may be time for a recording


def test_equal_ones_take_turns_by_chance():
    first = {next(pool(4, 4).slots("a")).container.url for _ in range(64)}
    assert first == {"http://c0", "http://c1"}


def test_what_a_container_said_long_ago_is_not_trusted(monkeypatch):
    made = pool(64, 64)
    silent, heard = made.of("a")
    measured(silent, 60, 60)
    measured(heard, 1, 60)
    assert next(made.slots("a")).container is silent
    silent.heard -= STALE_S
    assert [slot.container for slot in made.slots("a")] == [heard, silent]


def test_who_was_passed_over_gets_nothing_before_it_is_asked_again():
    made = pool(4, 2)
    larger, _ = made.of("a")
    for slot in made.slots("a"):
        slot.free()
    with pytest.raises(PeerBusy):
        next(made.slots("a"))
    larger.room = None  # as the answer of a container that does not measure
    assert next(made.slots("a")).container is larger


def test_a_place_is_given_back_once():
    made = pool(2)
    first, _ = next(made.slots("a")), next(made.slots("a"))
    first.free()
    first.free()
    assert (len(made.of("a")[0].slots), made.free("a")) == (1, 1)


def test_who_was_passed_over_is_not_asked_again():
    made = pool(1, 5)
    assert [slot.container.url for slot in made.slots("a")] == ["http://c1", "http://c0"]


def test_that_others_are_full_is_said_when_who_had_a_place_did_not_take_the_job():
    made = pool(1, 1)
    next(made.slots("a"))
    slots = made.slots("a")
    next(slots)
    with pytest.raises(PeerBusy):
        next(slots)


def test_an_unknown_name_is_404_with_the_names_there_are():
    made = pool(1)
    made.add(Container("b", "http://c0", 1))
    with pytest.raises(RequestRefused, match="model not found: 'c'; there are: a, b") as caught:
        next(made.slots("c"))
    assert caught.value.status == 404
    with pytest.raises(RequestRefused, match="there are: none"):
        next(Pool().slots("c"))


def test_containers_that_do_not_answer_are_named_with_their_trouble():
    made = pool(1)
    made.of("a")[0].not_ready("it is loading")
    with pytest.raises(PeerFailed, match="http://c0: it is loading") as caught:
        next(made.slots("a"))
    assert caught.value.status == 502


def test_a_container_that_leaves_is_known_until_its_last_job_is_over():
    made = pool(2)
    slot = next(made.slots("a"))
    slot.container.leaving = True
    assert (made.names, made.of("a"), made.free("a")) == ((), [], 0)
    assert list(made) == [slot.container]
    slot.container.is_ready()  # it is followed still, and not offered
    assert slot.container.free == 0
    slot.free()
    assert list(made) == []


def test_a_token_is_not_shown():
    container = Container("a", "http://c", 1, "s3cret")
    assert "s3cret" not in repr(container)
    assert container.headers == {"Authorization": "Bearer s3cret"}
    assert Container("a", "http://c", 1).headers == {}


def test_the_pipeline_is_named_unless_there_is_only_one():
    container = Container("a", "http://c", 1)
    assert container.query == {"pipeline": "a"}  # not known yet
    container.pipelines = ("x",)
    assert container.query == {}
    container.pipelines = ("x", "a")
    assert container.query == {"pipeline": "a"}


def test_coming_and_going_is_logged_once(caplog):
    caplog.set_level(logging.INFO)
    container = Container("tiny", "http://c", 1)
    for _ in range(2):
        container.is_ready()
    for _ in range(2):
        container.not_ready("it is draining")
    messages = [each.message for each in caplog.records]
    assert messages.count("BYOC capability registered: tiny") == 1
    assert messages.count("BYOC capability lost: tiny (http://c): it is draining") == 1
    container.pipelines = ("other",)
    container.is_ready()
    assert "says that it serves other" in caplog.text
