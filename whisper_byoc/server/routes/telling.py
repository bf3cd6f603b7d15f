"""What a route declares besides its docstring: parameters, body and responses, as it reads and writes them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp.typedefs import Handler

from whisper_byoc.params import Param

Content = type | str | Sequence[str] | None
"""What a body is: JSON of a `TypedDict`, bytes of one content type or of several, or nothing."""
H = TypeVar("H", bound=Handler)
SOUND = ("application/octet-stream", "audio/wav")
"""Any other `audio/` and `video/` type is accepted too."""


@dataclass(frozen=True)
class Told:
    """What is declared for one handler."""

    params: Sequence[Param[Any]] = ()
    """Query parameters."""
    body: Content = None
    form: Sequence[Param[Any]] = ()
    """Fields of a form besides the recording; if `recording`, the name of that field, is set, the body may be such a
    form."""
    recording: str = ""
    answers: Mapping[int, Content] = field(default_factory=lambda: {200: dict})
    """Status -> body; every other status is an error."""


def tells(
    *params: Param[Any],
    body: Content = None,
    form: Sequence[Param[Any]] = (),
    recording: str = "",
    answers: Mapping[int, Content],
) -> Callable[[H], H]:
    """Make a decorator that attaches these to a handler, for `told_of`."""

    def mark(handler: H) -> H:
        handler.told = Told(params, body, form, recording, answers)  # type: ignore[attr-defined]
        return handler

    return mark


def told_of(handler: object) -> Told:
    """Return what is declared for a handler."""
    found = getattr(handler, "told", None)
    return found if isinstance(found, Told) else Told()
