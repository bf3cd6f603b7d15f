"""The container's OpenAPI 3.1 document, made from its route table and what the handlers declare."""

import inspect
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from aiohttp import hdrs, web

from whisper_byoc import __version__
from whisper_byoc.livepeer import ID
from whisper_byoc.params import Param
from whisper_byoc.server.routes.answers import shape_of
from whisper_byoc.server.routes.telling import Content, told_of

BINARY: Mapping[str, Any] = types.MappingProxyType({"type": "string", "format": "binary"})
JOB_ID: Mapping[str, Any] = types.MappingProxyType({"type": "string", "pattern": f"^(?:{ID.pattern})$"})
TEXT: Mapping[str, Any] = types.MappingProxyType({"type": "string"})
SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", types.NoneType: "null"}
NAMED = re.compile(r"\{(\w+)(?::[^{}]*)?\}")


def document(routes: Iterable[web.RouteDef], *, has_token: bool) -> dict[str, Any]:
    """Describe these routes."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = NAMED.sub(r"{\1}", route.path)
        method = hdrs.METH_POST if route.method == hdrs.METH_ANY else route.method
        paths.setdefault(path, {})[method.lower()] = _operation(path, route.handler)
    title = {"title": "whisper-byoc", "version": __version__, "license": {"name": "MIT", "identifier": "MIT"}}
    found: dict[str, Any] = {"openapi": "3.1.0", "info": title, "paths": paths}
    if has_token:
        found["security"] = [{"token": []}]
        found["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
    return found


def _operation(path: str, handler: object) -> dict[str, Any]:
    told = told_of(handler)
    summary, _, description = (inspect.getdoc(handler) or "").partition("\n\n")
    in_path = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": dict(JOB_ID) if name == "job_id" else {"type": "string"},
        }
        for name in NAMED.findall(path)
    ]
    in_query = [
        {"name": each.name, "in": "query", "description": each.help, "schema": _with_default(each)}
        for each in told.params
    ]
    answers = {str(status): _answer(status, content) for status, content in told.answers.items()}
    error = get_type_hints(shape_of(handler, path)).get("return", dict)
    operation: dict[str, Any] = {
        "summary": " ".join(summary.split()),
        "parameters": in_path + in_query,
        "responses": answers | {"default": {"description": "an error", "content": _content(error)}},
    }
    if description:
        operation["description"] = description
    if body := _body(told.body, told.recording, told.form):
        operation["requestBody"] = {"content": body}
    return operation


def _body(content: Content, recording: str, form: Sequence[Param[Any]]) -> dict[str, Any]:
    found = {each: told or {"schema": dict(BINARY)} for each, told in _content(content).items()}
    if recording:
        fields = {each.name: _with_default(each) | {"description": each.help} for each in form}
        schema = {"type": "object", "required": [recording], "properties": {recording: dict(BINARY), **fields}}
        found["multipart/form-data"] = {"schema": schema}
    return found


def _answer(status: int, content: Content) -> dict[str, Any]:
    found = _content(content)
    return {"description": str(status), "content": found} if found else {"description": str(status)}


def _content(content: Content) -> dict[str, Any]:
    if content is None:
        return {}
    if isinstance(content, type):
        return {"application/json": {"schema": schema_of(content)}}
    return {each: {} for each in ((content,) if isinstance(content, str) else content)}


def _with_default(param: Param[Any]) -> dict[str, Any]:
    default = param.default
    if default is None:
        return dict(param.schema)
    return {**param.schema, "default": str(default).lower() if isinstance(default, bool) else default}


def schema_of(kind: Any) -> dict[str, Any]:
    """Return the JSON schema of a type: a `TypedDict`, a list, a mapping, a union, literals, or a simple one."""
    if is_typeddict(kind):
        properties = {name: schema_of(each) for name, each in get_type_hints(kind).items()}
        return {"type": "object", "required": sorted(kind.__required_keys__), "properties": properties}
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(each) for each in args]}
    if origin is list:
        return {"type": "array", "items": schema_of(args[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": schema_of(args[1])}
    return {"type": SIMPLE[kind]} if kind in SIMPLE else {}
