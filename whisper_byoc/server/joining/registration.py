"""The options of registering at orchestrators."""

from dataclasses import dataclass, field, replace
from typing import Self

from whisper_byoc.http import base_url
from whisper_byoc.livepeer import Capability, check_header_value


@dataclass(frozen=True)
class RegistrationOptions:
    """At which orchestrators to register what. All times in seconds."""

    orchestrators: tuple[str, ...]
    """Base URLs; without a scheme, https."""
    secret: str = field(default="", repr=False)
    """What the orchestrators were given as `-orchSecret`."""
    capability: Capability = field(default_factory=Capability)
    verify_tls: bool = False
    """Check certificates; go-livepeer's orchestrators sign their own."""
    interval_seconds: float = 60.0
    """Between two questions whether the registration still stands, and after a refusal."""
    confirm_seconds: float = 5.0
    """From the first answer that it does not to the second; a job may just have been on its way."""
    answer_seconds: float = 10.0
    """Longest wait for an answer."""
    first_pause: float = 1.0
    """Before the second try to reach an orchestrator; the pauses double."""
    longest_pause: float = 30.0
    leave_seconds: float = 3.0
    """Longest time that unregistering may take."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for what cannot be an address or a secret."""
        urls = [base_url(each, scheme="https") for each in self.orchestrators]
        object.__setattr__(self, "orchestrators", tuple(dict.fromkeys(urls)))
        check_header_value("orchestrator secret", self.secret)

    def filled(self, name: str, url: str, capacity: int, token: str) -> Self:
        """Return the same with the capability's empty fields filled in."""
        given = self.capability
        capability = replace(
            given,
            name=given.name or name,
            description=given.description or f"{name} by whisper-byoc",
            url=given.url or url,
            capacity=given.capacity or capacity,
            token=given.token or token,
        )
        return replace(self, capability=capability)
