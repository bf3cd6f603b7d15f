"""The `Livepeer` header: what go-livepeer sends is read, anything else is a 400 with a sentence."""

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.errors import RequestRefused
from whisper_byoc.livepeer import NOBODY, JobHeader, sender_header

GOOD = {"capability": "tiny", "timeout_seconds": 30, "request": "{}", "parameters": "{}"}


def encoded(fields):
    return base64.b64encode(fields if isinstance(fields, bytes) else json.dumps(fields).encode()).decode()


def refused(text):
    with pytest.raises(RequestRefused) as caught:
        JobHeader.parse(text)
    assert caught.value.status == 400
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    return str(caught.value)


def test_what_a_go_gateway_sends():
    sent = {
        **GOOD, "id": "abc", "sender": NOBODY, "sig": "0x", "capability_url": "", "request": '{"stream_id":"s-1"}',
        "parameters": '{"enable_data_output":true}',
    }  # fmt: skip
    job = JobHeader.parse(encoded(sent))
    assert (job.capability, job.timeout_seconds, job.id, job.stream_id) == ("tiny", 30, "abc", "s-1")
    assert job.options == {"enable_data_output": True}


def test_written_and_read_again_it_is_the_same_with_empty_signature():
    job = JobHeader("tiny", 5, '{"a":1}', '{"b":2}', "id").asking(stream_id="s")
    assert JobHeader.parse(job.encode()) == job
    assert json.loads(job.request) == {"a": 1, "stream_id": "s"}
    fields = json.loads(base64.b64decode(job.encode()))
    assert (fields["sender"], fields["sig"]) == (NOBODY, "")
    assert json.loads(base64.b64decode(sender_header())) == {"addr": NOBODY, "sig": ""}


@pytest.mark.parametrize("name", ["request", "parameters"])
@pytest.mark.parametrize("value", [None, "", "x", "[]", "null", {}, 1, "[" * 3000, '{"a":}'])
def test_a_part_that_holds_no_object_is_named(name, value):
    assert name in refused(encoded({**GOOD, name: value}))
    fields = {**GOOD}
    del fields[name]
    assert name in refused(encoded(fields))


@pytest.mark.parametrize("seconds", [None, 0, -1, 1.5, "30", True, 1 << 70, 86401])
def test_a_time_that_is_none(seconds):
    assert "timeout_seconds" in refused(encoded({**GOOD, "timeout_seconds": seconds}))


@pytest.mark.parametrize("name", [None, "", 1, ["a"], {}])
def test_a_capability_that_is_none(name):
    assert "capability" in refused(encoded({**GOOD, "capability": name}))


def test_an_id_that_is_no_text():
    assert "id" in refused(encoded({**GOOD, "id": 7}))


@pytest.mark.parametrize(
    "text", [None, "", "%", "YQ", "é", encoded(b"[]"), encoded(b"7"), encoded(b"\xff"), encoded(b"[" * 30_000)]
)
def test_what_is_no_header(text):
    assert "Livepeer" in refused(text)


@given(st.text(max_size=200) | st.binary(max_size=200).map(encoded))
def test_whatever_comes_is_read_or_refused(text):
    with contextlib.suppress(RequestRefused):
        JobHeader.parse(text)


def test_a_stream_id_that_is_no_text_is_none():
    assert JobHeader.parse(encoded({**GOOD, "request": '{"stream_id": 7}'})).stream_id == ""
