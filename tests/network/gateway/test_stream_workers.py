"""Streams with anybody's container: what it says and answers comes through as it is."""

import asyncio

import pytest

from tests.waiting import until


async def test_an_update_is_relayed_and_answered_by_the_container(world):
    worker, gateway = await world.worker_pair()
    await gateway.start("one")
    headers = {"Livepeer": world.header(request={"stream_id": "one"})}
    path = "/process/stream/one/update"
    for status, body in ((200, b'{"said": "' + b"y" * 300_000 + b'"}'), (422, b'{"said": "no"}')):
        worker.params = status, body
        got, answer, back = await gateway.post(path, b'{"a": 1}', headers=headers)
        assert (got, answer, back["Content-Type"]) == (status, body, "application/json")
        assert worker.asked == b'{"a": 1}'
    worker.params = 200, b"{}"
    for odd in (b"[1]", b'{"params": 3}', b"{"):
        assert (await gateway.post(path, odd, headers=headers))[0] == 200
    assert (await gateway.post(path, b"{}"))[0] == 400  # go-livepeer wants its header
    assert (await gateway.post("/process/stream/none/update", b"{}", headers=headers))[0] == 404
    await gateway.post("/process/stream/one/stop")
    assert (await gateway.post(path, b"{}", headers=headers))[0] == 404


async def test_the_status_is_the_containers_and_does_not_vanish(world):
    worker, gateway = await world.worker_pair()
    await gateway.start("one")
    await worker.event({"type": "status", "fps": 7}, {"type": "error", "message": "a cable is loose"})
    told = await gateway.status(wanted=lambda status: "error" in status)  # before they can leave the window of 5
    await worker.say(b"not json", b"[]", b"7", b'{"event": []}', b"[" * 5000, kind="events")
    assert (told["fps"], told["state"], told["error"]) == (7, "running", "a cable is loose")
    assert told["orchestrator"] == worker.orchestrator.url
    _, body, headers = await gateway.post("/process/stream/one/stop")
    assert body == b'{"bye": 1}'
    assert headers["Content-Type"].startswith("application/json")
    assert (await gateway.json("/process/stream/one/status"))[1]["state"] == "ended"
    assert (await gateway.json("/process/stream/none/status"))[0] == 404


async def test_a_container_whose_text_has_no_end_record_ends_in_order(world):
    """As pytrickle's: its lines are what its author likes."""
    worker, gateway = await world.worker_pair()
    _, answer = await gateway.start("one")
    await worker.say(b'["{\\"text\\": \\"hello\\"}"]\n', b"[]\n", b"plain\rtext\n\nmore\n")
    reader = gateway.follow(answer["data_url"])
    await until(lambda: len(reader.events) == 3)
    assert (await gateway.post("/process/stream/one/stop"))[0] == 200
    await asyncio.wait_for(reader.task, 10)
    assert [each["data"] for each in reader.events[:-1]] == ['["{\\"text\\": \\"hello\\"}"]', "plain text", "more"]
    assert reader.events[-1]["event"] == "end"
    assert "error" not in (await gateway.json("/process/stream/one/status"))[1]
    await gateway.settled()


async def test_a_client_who_does_not_wait_for_the_stop_does_not_interrupt_it(world):
    worker, gateway = await world.worker_pair()
    _, answer = await gateway.start("one")
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def on_stop():
        asked.set()
        await go_on.wait()
        await worker.say({"type": "end", "seq": 0})

    worker.on_stop = on_stop
    stopping = asyncio.ensure_future(gateway.post("/process/stream/one/stop"))
    await asyncio.wait_for(asked.wait(), 10)
    stopping.cancel()
    go_on.set()
    assert [record["type"] for record in await gateway.follow(answer["data_url"]).ended()] == ["end"]
    await gateway.settled()


async def test_a_container_that_stops_by_itself_is_no_failure(world):
    worker, gateway = await world.worker_pair()
    _, answer = await gateway.start("one", ingress=False, data=True)
    await worker.event({"type": "stream_stopped"})
    await gateway.follow(answer["data_url"]).ended()
    assert "error" not in (await gateway.json("/process/stream/one/status"))[1]
    assert len(worker.started) == 1
    await gateway.settled()


@pytest.mark.parametrize(("status", "got"), [(400, 400), (422, 422), (500, 500), (503, 503)])
async def test_the_words_of_a_refusal_come_through(world, status, got):
    worker, gateway = await world.worker_pair()
    worker.refusal = status, b'{"error": "I would rather not"}'
    code, answer = await gateway.start("one")
    assert (code, answer) == (got, "I would rather not\n")
    await gateway.settled()
    await until(lambda: worker.orchestrator.slots == 0)
    assert not len(worker.orchestrator.run.streams)
