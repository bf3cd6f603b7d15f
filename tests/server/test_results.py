"""The ring of records: what partial results change about it."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisper_byoc.processors.base import Result
from whisper_byoc.server.core.results import ResultRing


def ring(most=100, most_bytes=10**6):
    return ResultRing("job", "text/plain", most, most_bytes)


def partial(text):
    return Result(b"", {"type": "transcript", "text": text, "is_final": False}, partial=True)


def final(text):
    return Result(text.encode(), {"type": "transcript", "text": text, "is_final": True})


def text(record):
    return record.fields()["text"]


async def read(results, timeout=1.0):
    record = await results.next_unread(timeout)
    results.mark_read(record)
    return record


async def test_an_unread_partial_gives_way_to_whatever_comes_next():
    results = ring()
    for word in ("a", "a b", "a b c"):
        await results.add(partial(word))
    assert (results.next_seq, results.unread) == (1, 1)
    await results.add(final("a b c d"))
    record = await read(results)
    assert (record.seq, text(record)) == (0, "a b c d")
    assert results.unread == 0


async def test_a_partial_that_somebody_has_stays():
    results = ring()
    await results.add(partial("a"))
    record = await results.next_unread(1)  # its reader is still writing it
    await results.add(partial("a b"))
    await results.add(partial("a b c"))
    results.mark_read(record)
    assert [(each.seq, text(each)) for each in (record, await read(results))] == [(0, "a"), (1, "a b c")]
    assert results.at(0) is record  # and can be read again


async def test_a_partial_read_by_number_stays():
    results = ring()
    await results.add(partial("a"))
    record = await results.wait_for(0, 1)
    await results.add(final("b"))
    assert results.at(0) is record
    assert results.at(1).seq == 1


async def test_a_reader_who_waits_gets_the_newest():
    results = ring()
    waiting = asyncio.ensure_future(results.next_unread(5))
    await asyncio.sleep(0)
    await results.add(partial("a"))
    await results.add(partial("b"))  # before the reader had its turn
    record = await waiting
    assert (record.seq, text(record)) == (0, "b")


async def test_finals_and_errors_never_give_way():
    results = ring()
    await results.add(final("a"))
    await results.add_error("no luck")
    await results.add(partial("b"))
    await results.add_error("none at all")
    await results.add(final("c"))
    assert [(await read(results)).kind for _ in range(5)] == ["result", "error", "result", "error", "result"]


async def test_a_full_ring_waits_for_its_reader_and_a_partial_takes_no_place_for_long():
    results = ring(most=2)
    await results.add(final("a"))
    await results.add(partial("b"))
    await asyncio.wait_for(results.add(partial("b c")), 1)  # in the place of the other
    await asyncio.wait_for(results.add(final("b c d")), 1)
    adding = asyncio.ensure_future(results.add(final("e")))
    await asyncio.sleep(0)
    assert not adding.done()
    assert [text(await read(results)) for _ in range(2)] == ["a", "b c d"]
    await asyncio.wait_for(adding, 1)


async def test_sizes_are_those_of_what_is_there():
    results = ring(most_bytes=10)
    for _ in range(50):
        await asyncio.wait_for(results.add(partial("x" * 100)), 1)
    await results.add(final("0123456789"))
    adding = asyncio.ensure_future(results.add(final("x")))
    await asyncio.sleep(0)
    assert not adding.done()
    await read(results)
    await asyncio.wait_for(adding, 1)


STEPS = st.lists(st.sampled_from(["partial", "final", "error", "look", "read", "mark", "number"]), max_size=60)


@settings(deadline=None, max_examples=150)
@given(STEPS)
def test_any_interleaving_gives_rising_numbers_and_loses_no_final(steps):
    async def run():
        results, sent, seen, held = ring(), [], [], None
        for number, step in enumerate(steps):
            if step == "partial":
                await results.add(partial(f"p{number}"))
            elif step == "final":
                sent.append(f"f{number}")
                await results.add(final(sent[-1]))
            elif step == "error":
                sent.append("error")
                await results.add_error("no luck")
            elif step == "number":
                await results.wait_for(results.next_seq - 1, 0) if results.next_seq else None
            elif step == "mark" and held is not None:
                results.mark_read(held)
                seen.append(held)
                held = None
            elif step in ("look", "read") and held is None and results.unread:
                held = await results.next_unread(0)
                if step == "read":
                    results.mark_read(held)
                    seen.append(held)
                    held = None
        if held is not None:
            results.mark_read(held)
            seen.append(held)
        results.end({})
        while (record := await read(results)).kind != "end":
            seen.append(record)
        seen.append(record)
        assert [each.seq for each in seen] == list(range(len(seen)))
        assert [(each.error and "error") or text(each) for each in seen[:-1] if not each.partial] == sent
        shown = [int(text(each)[1:]) for each in seen[:-1] if each.partial]
        assert shown == sorted(set(shown))
        assert results.unread == 0

    asyncio.run(run())


@pytest.mark.parametrize("end", ["end", "force"])
async def test_a_partial_is_not_taken_back_by_the_end(end):
    results = ring()
    await results.add(partial("half a"))
    if end == "force":
        results.force_error("stopped")
    results.end({})
    kinds = []
    while not kinds or kinds[-1] != "end":
        kinds.append((await read(results)).kind)
    assert kinds == ["result", *(["error"] if end == "force" else []), "end"]
