"""Which model a benchmark runs."""

from dataclasses import dataclass

from whisper_byoc.speech.models import find_model


@dataclass(frozen=True)
class Subject:
    """A model under test."""

    name: str
    """What `WhisperProcessor` takes: a name or the path of a checkpoint."""

    @property
    def pipeline(self) -> str:
        """What `whisper-byoc serve --pipeline` takes."""
        return self.name if self.name.endswith(".pt") else f"whisper-{self.name}"

    @property
    def vocabulary(self) -> str:
        """Whose words it knows, demo's or tiny's: what `model` is in fixtures/texts.json."""
        return "demo" if self.name == "demo" else "tiny"


def default_models() -> list[str]:
    """Return the demo model, and tiny or tiny.en if its weights are on this machine."""
    return ["demo", *[name for name in ("tiny", "tiny.en") if find_model(name) is not None][:1]]
