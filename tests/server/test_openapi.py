"""`/openapi.json`: made of the routes, and true. tests/fuzz/schema.py asks all of it; here is what must be in it."""

import re
from typing import Literal, NotRequired, TypedDict

import pytest

from tests.server.stubs import Upper
from whisper_byoc.params import switch_param, whole_param
from whisper_byoc.server.app import ROUTES, WITH_TOKEN
from whisper_byoc.server.openapi import document, schema_of


@pytest.fixture(scope="module")
def described():
    return document((*ROUTES, *WITH_TOKEN), has_token=True)


def test_every_route_is_there_once_with_a_sentence_an_answer_and_the_names_in_its_path(described):
    operations = [(path, method, each) for path, its in described["paths"].items() for method, each in its.items()]
    assert len(operations) == len(ROUTES) + len(WITH_TOKEN)
    for path, method, operation in operations:
        assert operation["summary"].endswith("."), f"{method} {path} has no docstring"
        assert len(operation["responses"]) > 1, f"{method} {path} tells no answer"
        in_path = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
        assert in_path == re.findall(r"{(\w+)}", path)


@pytest.mark.parametrize("name", ["wait", "seq", "follow"])
async def test_what_a_parameter_says_is_what_it_takes(serving, described, name):
    api = await serving(Upper())
    await api.put("job", b"abc")
    parameters = described["paths"]["/live/{job_id}/output"]["get"]["parameters"]
    (schema,) = (each["schema"] for each in parameters if each["name"] == name)
    if "enum" in schema:
        good, bad = [], ["maybe", ""]
    else:
        good, bad = [schema["minimum"]], [schema["minimum"] - 1, schema["maximum"] * 2, "x"]
    for values, refused in ((good, False), (bad, True)):
        for value in values:
            status, _, _ = await api.get("job", f"?{name}={value}")
            assert (status == 400) == refused, value


async def test_it_is_read_without_the_token_and_says_how_to_show_it(serving):
    api = await serving(Upper(), config={"token": "of this test"})
    status, found = await api.json("/openapi.json")
    assert (status, found["openapi"], found["security"]) == (200, "3.1.0", [{"token": []}])
    assert "/debug/jobs" in found["paths"]
    status, found = await (await serving(Upper())).json("/openapi.json")
    assert (status, "security" in found, "/debug/jobs" in found["paths"]) == (200, False, False)


def test_errors_have_the_shape_of_their_route(described):
    def error(path, method="post"):
        content = described["paths"][path][method]["responses"]["default"]["content"]
        return list(content["application/json"]["schema"]["properties"])

    assert error("/live/{job_id}", "delete") == error("/v1/audio/transcriptions") == ["error"]
    assert error("/audio-to-text") == ["detail"]
    assert error("/stream/start") == ["status", "message", "current_state"]


class Inner(TypedDict):
    kind: Literal["a", "b"]
    note: str | None


class Outer(TypedDict):
    inner: list[Inner]
    sizes: NotRequired[dict[str, int]]


def test_schemas_of_types():
    note = {"anyOf": [{"type": "string"}, {"type": "null"}]}
    properties = {"kind": {"enum": ["a", "b"]}, "note": note}
    inner = {"type": "object", "required": ["kind", "note"], "properties": properties}
    sizes = {"type": "object", "additionalProperties": {"type": "integer"}}
    properties = {"inner": {"type": "array", "items": inner}, "sizes": sizes}
    assert schema_of(Outer) == {"type": "object", "required": ["inner"], "properties": properties}


def test_a_parameter_that_is_absent_has_its_default():
    assert whole_param("n", "", 1, 9, None).of({}) is None
    assert whole_param("n", "", 1, 9, 5).of({"n": "7"}) == 7
    assert switch_param("on", "", default=True).of({}) is True
