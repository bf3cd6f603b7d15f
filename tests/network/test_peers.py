"""What a peer's failure means, and which peer gets a job."""

import asyncio

import aiohttp
import pytest

from tests.waiting import forever
from whisper_byoc.errors import PeerBusy, PeerFailed, RequestRefused
from whisper_byoc.network.peers import AbortScope, first_to_take, refused, talking_to


@pytest.mark.parametrize(
    ("error", "status", "reached"),
    [
        (TimeoutError(), 504, True), (aiohttp.ServerTimeoutError(), 504, True),
        (aiohttp.ConnectionTimeoutError("no route"), 502, False),
        (aiohttp.ClientConnectorError(aiohttp.client_reqrep.ConnectionKey("h", 1, False, True, None, None, None),
                                      OSError(111, "refused")), 502, False),
        (aiohttp.ServerDisconnectedError(), 502, True), (ConnectionResetError(), 502, True), (OSError("x"), 502, True),
    ],
)  # fmt: skip
def test_what_went_wrong_with_a_peer(error, status, reached):
    with pytest.raises(PeerFailed, match=r"^the peer .*\w$") as caught, talking_to("the peer"):
        raise error
    assert (caught.value.status, caught.value.reached) == (status, reached)


@pytest.mark.parametrize(
    ("body", "words"),
    [(b'{"error":"a b"}', "a b"), (b"plain\n", "plain"), (b"", "it answered 400"), (b" ", "it answered 400"),
     (b'{"x":1}', '{"x":1}'), (b"[1]", "[1]"), (b"\xff", "\ufffd"), (b"[" * 9999, "[" * 500),
     (b'{"error":{"a":1}}', "{'a': 1}")],
)  # fmt: skip
def test_the_sentence_in_an_error_answer(body, words):
    assert str(refused("it", 400, body)) == words


@pytest.mark.parametrize(
    ("status", "retry_after", "kind", "got", "seconds"),
    [
        (400, "", RequestRefused, 400, None), (404, "", RequestRefused, 404, None), (401, "", PeerFailed, 502, None),
        (500, "", PeerFailed, 500, None), (504, "", PeerFailed, 504, None), (429, "7", PeerBusy, 429, 7),
        (503, "", PeerBusy, 503, 1), (503, "soon", PeerBusy, 503, 1), (503, "²", PeerBusy, 503, 1),
        (503, "9" * 20, PeerBusy, 503, 1),
    ],
)  # fmt: skip
def test_the_kind_of_an_error_answer(status, retry_after, kind, got, seconds):
    error = refused("it", status, b"words", retry_after)
    assert (type(error), error.status, error.retry_after) == (kind, got, seconds)


UNREACHED = PeerFailed("refused", reached=False)
BROKEN, SLOW = PeerFailed("broke off"), PeerFailed("too slow", 504)
FULL, BAD = PeerBusy("full"), RequestRefused(400, "bad")


@pytest.mark.parametrize(
    ("outcomes", "asked", "outcome"),
    [
        (["a", "b"], 1, "a"),
        ([UNREACHED, FULL, UNREACHED, "a"], 4, "a"),
        ([FULL, BROKEN, "a"], 2, BROKEN),  # it may have begun
        ([FULL, SLOW, "a"], 2, SLOW),
        ([UNREACHED, BAD, "a"], 2, BAD),
        ([UNREACHED, FULL, UNREACHED], 3, FULL),
        ([UNREACHED], 1, UNREACHED),
    ],
)
async def test_who_gets_a_job_and_what_is_said_when_nobody_takes_it(outcomes, asked, outcome):
    asked_of = []

    async def attempt(each):
        asked_of.append(each)
        if isinstance(each, Exception):
            raise each
        return each

    try:
        got = await first_to_take(outcomes, attempt)
    except RequestRefused as error:
        got = error
    assert (len(asked_of), got) == (asked, outcome)


async def test_without_peers_there_is_nobody_to_ask():
    with pytest.raises(PeerFailed, match="nobody to ask"):
        await first_to_take([], None)


# -- abort scopes ----------------------------------------------------------------------------------------


async def work(scope, until):
    async with scope.guard():
        await until
    await asyncio.sleep(0)
    return "done"


async def begun(scope):
    done = asyncio.get_running_loop().create_future()
    working = asyncio.ensure_future(work(scope, done))
    await asyncio.sleep(0)
    return working, done


async def test_work_is_interrupted_and_no_more_begins():
    scope = AbortScope()
    working, done = await begun(scope)
    scope.abort("the container is gone")
    scope.abort("a second reason")
    with pytest.raises(PeerFailed, match="the container is gone"):
        await working
    with pytest.raises(PeerFailed, match="the container is gone"):
        await work(scope, done)


async def test_work_that_somebody_else_cancels_is_cancelled():
    working, _ = await begun(AbortScope())
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_a_time_limit_within_is_only_that():
    async def limited(scope):
        async with scope.guard(), asyncio.timeout(0):
            await forever()

    with pytest.raises(TimeoutError):
        await limited(AbortScope())


@pytest.mark.parametrize("first", ["done", "aborted"])
async def test_work_that_is_done_in_that_moment_is_not_cancelled_later(first):
    scope = AbortScope()
    working, done = await begun(scope)
    if first == "done":
        done.set_result(None)
        await asyncio.sleep(0)
        scope.abort("gone")
    else:
        done.set_result(None)
        scope.abort("gone")
    assert await working == "done"
