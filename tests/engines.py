"""Engines that tests make up."""

from whisper_byoc.languages import LANGUAGES
from whisper_byoc.speech.engine import Inference


class OneAtATime:
    """What is common to engines whose inferences have one step."""

    languages = tuple(LANGUAGES)
    batch = beam = 1
    continues = False

    def fresh(self):
        return self.replica()

    def rehearse(self, samples, tokens, texts=1):
        def work():
            yield from range(tokens if self.batch > 1 else 0)

        return Inference(self, work())

    def advance(self, inferences):
        for each in inferences:
            each.send()


def at_once(method):
    """A method of such an engine, which may simply return its result."""

    def begin(self, *arguments):
        def work():
            yield from ()
            return method(self, *arguments)

        return Inference(self, work())

    return begin
