"""Create a project for your own processor: the processor, a test, and a Dockerfile."""

import argparse
import re
from pathlib import Path

from whisper_byoc.cli.options import Parser
from whisper_byoc.errors import UsageError

FILES = {
    "processor.py": '''"""CLASS: serve it with `whisper-byoc run processor.py`."""


class CLASS:
    content_type = "text/plain; charset=utf-8"

    async def process(self, frame: bytes) -> str:
        """Turn one frame or segment, never an empty one, into its result."""
        return f"{len(frame)} bytes"
''',
    "test_processor.py": """import asyncio

from processor import CLASS
from whisper_byoc.processors.testing import results_of


def test_a_frame_has_a_result():
    (result,) = asyncio.run(results_of(CLASS(), [b"abc"]))
    assert result.body == b"3 bytes"
""",
    "Dockerfile": """# docker build -t NAME . && docker run -p 8000:8000 NAME
FROM whisper-byoc
COPY processor.py .
CMD ["run", "processor.py"]
""",
    "README.md": """# NAME

```
whisper-byoc run processor.py --reload       # serves it on http://127.0.0.1:8000, and again after every change
curl --data-binary abc http://127.0.0.1:8000/
python -m pytest                             # pip install pytest
```
""",
}


def configure(parser: Parser) -> None:
    parser.add_argument("name", help="name of the project and of its folder")


def run(args: argparse.Namespace) -> int:
    folder = Path(args.name)
    words = re.findall(r"[A-Za-z0-9]+", folder.name)
    if not words or not words[0][0].isalpha():
        raise UsageError(f"{args.name!r} is not a project name; use letters, digits and dashes, such as my-processor")
    try:
        folder.mkdir(parents=True)
        for name, text in FILES.items():
            made = text.replace("CLASS", "".join(word.capitalize() for word in words)).replace(
                "NAME", "-".join(words).lower()
            )
            (folder / name).write_text(made, encoding="utf-8")
    except FileExistsError:
        raise UsageError(f"{folder} already exists; choose another name") from None
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}") from None
    print(f"created {', '.join(FILES)} in {folder}; next: cd {folder} && whisper-byoc run processor.py")
    return 0
