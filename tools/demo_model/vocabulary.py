"""The words that the demo model knows."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FUNCTION_WORDS = _words(
    """
    the and is are was in at with from of this that can will must you we they she he my your our
    not but very where when what why how has there
    """
)
"""Said in sentences only: alone, or between words drawn at random, several of them are no more than a murmur."""

NUMBERS = _words(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand
    """
)
SPELLING = _words(
    """
    alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo
    sierra tango uniform victor whiskey xray yankee zulu
    """
)
"""The NATO alphabet."""

COMMANDS = _words("start stop pause play record open close yes no up down left right on off")
COLOURS = _words("red blue yellow black white orange purple brown grey pink green")
TECHNICAL = _words(
    """
    stream segment audio video gateway orchestrator transcript frame tint hello world test model whisper live network
    job worker channel packet signal noise silence
    """
)
CORE_WORDS = (*NUMBERS, *SPELLING, *COMMANDS, *COLOURS, *TECHNICAL)
"""The 105 words of the first demo model, which fixtures and figures to compare by are made of."""

VERBS = _words(
    """
    go come make take give get tell ask think want need find use call send talk listen watch wait run walk drive eat
    drink sleep build learn help bring keep leave turn move show follow carry change finish remember forget love speak
    """
)
PEOPLE = _words("friend family mother father brother sister child man woman doctor teacher student driver people")
THINGS = _words(
    """
    door window table chair book paper letter water food bread milk coffee sugar apple tree car train bus plane ship
    money music song story picture phone computer screen camera button speaker voice word sentence question answer
    problem message report dog cat horse bird fish name number
    """
)
PLACES = _words(
    """
    home house room garden street road city country school office market river mountain island station kitchen bridge
    """
)
TIMES = _words(
    """
    today tomorrow yesterday morning evening night week summer winter monday tuesday wednesday thursday friday saturday
    sunday
    """
)
WEATHER = _words("rain snow wind sun weather")
QUALITIES = _words(
    """
    good bad big small long short old young happy sad hot cold warm fast slow early late easy heavy light dark clean
    quiet loud strong beautiful important ready busy empty full
    """
)
ADVERBS = _words("now again soon always never together please next first last other every")

CONTENT_WORDS = (*CORE_WORDS, *VERBS, *PEOPLE, *THINGS, *PLACES, *TIMES, *WEATHER, *QUALITIES, *ADVERBS)
"""What random sequences are drawn from."""

WORDS = (*CONTENT_WORDS, *FUNCTION_WORDS)
"""All of them. No two sound alike (so neither `to`, like `two`, nor `for`, like `four`)."""

SPOKEN = {"xray": "x-ray"}
"""How a word has to be written for a synthesiser to say it, where that is not how the model writes it."""
