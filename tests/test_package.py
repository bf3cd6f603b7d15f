"""What is installed: the wheel and the sdist that setuptools builds."""

import email
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "audio", "whisper_byoc", "tests")
DATA = {".html", ".css", ".js", ".svg", ".npz", ".pt", ".wav", ".typed", ".md", ".LICENSE"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with both, built of a copy."""
    folder = tmp_path_factory.mktemp("package")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    build = "import sys, setuptools.build_meta as made; made.build_wheel('dist'); made.build_sdist('dist')"
    (folder / "dist").mkdir()
    subprocess.run([sys.executable, "-W", "ignore", "-c", build], cwd=folder, check=True, capture_output=True)
    return folder / "dist"


def files_of(package):
    """Give what of a package is to be installed: modules and the data that they read."""
    found = (path for path in (ROOT / package).rglob("*") if path.suffix in {".py", *DATA})
    return {str(path.relative_to(ROOT)) for path in found}


def test_the_wheel_has_every_file_of_the_packages_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = email.message_from_bytes(archive.read(next(each for each in names if each.endswith("/METADATA"))))
    assert {each for each in names if ".dist-info/" not in each} == files_of("audio") | files_of("whisper_byoc")
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert any(each.endswith("/licenses/LICENSE") for each in names)


def test_the_sdist_builds_the_same_and_has_no_tests(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {each.partition("/")[2] for each in archive.getnames()}
    assert files_of("audio") | files_of("whisper_byoc") <= names
    assert not any(each.startswith("tests/") for each in names)
