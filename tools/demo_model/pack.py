"""Make a checkpoint small: the zip that torch.save writes, compressed. torch.load reads it all the same.

    python -m tools.demo_model.pack build/demo-model/demo.pt whisper_byoc/speech/assets/demo.pt

Most of the file are embedding rows of zeros, which nearly vanish. The same input gives the same bytes. What is lost is
reading it by `torch.load(mmap=True)`, which openai-whisper does not do.
"""

import argparse
import hashlib
import sys
import zipfile
from pathlib import Path


def pack(source: Path, target: Path) -> str:
    """Write the checkpoint `source` compressed to `target`, and return the SHA-256 of that, in hex."""
    unfinished = target.with_suffix(".part")
    with zipfile.ZipFile(source) as loose, zipfile.ZipFile(unfinished, "w") as packed:
        for name in loose.namelist():
            entry = zipfile.ZipInfo(name)  # dated 1980, not now
            packed.writestr(entry, loose.read(name), zipfile.ZIP_DEFLATED, compresslevel=9)
    unfinished.replace(target)
    return hashlib.sha256(target.read_bytes()).hexdigest()


def main() -> int:
    """Run the command line; 0 is success."""
    parser = argparse.ArgumentParser(description="Compress a checkpoint.")
    parser.add_argument("source", type=Path, help="what `train` exported")
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    digest = pack(arguments.source, arguments.target)
    sizes = [path.stat().st_size / 1e6 for path in (arguments.source, arguments.target)]
    print(f"{sizes[0]:.1f} MB, packed {sizes[1]:.2f} MB, SHA-256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
