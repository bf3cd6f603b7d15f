"""Ask for known weaknesses of the packages in .venv (pip-audit), and say so where nobody can be asked.

usage: python tools/audit.py PIP_AUDIT SITE_PACKAGES
Exit code: 0 none is known, or nothing was found out; 1 there are some.
"""

import json
import subprocess
import sys
from collections.abc import Sequence

SECONDS = 300


def main(words: Sequence[str]) -> int:
    """Run pip-audit, and print one line, or one for each weakness."""
    pip_audit, packages = words
    command = [pip_audit, "--path", packages, "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        found = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return skipped(f"no answer within {SECONDS} s")
    except (ValueError, KeyError):
        return skipped(done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}")
    asked = [each for each in found if "vulns" in each]
    if not asked:  # pip-audit takes a service that is not there for one that knows no package
        return skipped("none of the packages is known there; is the package index a mirror without its JSON API?")
    weak = [(each, weakness) for each in asked for weakness in each["vulns"]]
    for each, weakness in weak:
        mended = ", ".join(weakness["fix_versions"]) or "no version yet"
        print(f"audit: {each['name']} {each['version']}: {weakness['id']}, mended in {mended}")
    unknown = [each["name"] for each in found if "vulns" not in each]
    print(f"audit: {len(weak)} weaknesses of {len(asked)} packages; not known there: {', '.join(unknown) or 'none'}")
    return int(bool(weak))


def skipped(reason: str) -> int:
    print(f"audit: SKIPPED, nothing was found out: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
