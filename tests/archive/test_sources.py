"""What is found in folders, patterns and lists, and under which names."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.archive import sources
from whisper_byoc.archive.sources import find, result_name, shown
from whisper_byoc.errors import UsageError


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A folder `rec` in the current one, with two recordings and what is none."""
    monkeypatch.chdir(tmp_path)
    for name in ("rec/b.wav", "rec/deep/er/a.MP3", "rec/notes.txt", "rec/._b.wav", "rec/.hidden/c.wav"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"sound")
    return tmp_path


def places(*words, lists=()):
    return [each.place for each in find(words, lists).sources]


def test_a_folder_is_the_sound_in_it(archive):
    listing = find(["rec"], [])
    assert [each.place for each in listing.sources] == ["rec/b.wav", "rec/deep/er/a.MP3"]
    assert [each.size for each in listing.sources] == [5, 5]
    assert (listing.passed_over, listing.failures) == (2, [])


def test_a_pattern_is_the_files_that_match_whatever_their_ending(archive):
    assert places("rec/**/*.*") == ["rec/b.wav", "rec/deep/er/a.MP3", "rec/notes.txt"]
    Path("rec/[1].wav").write_bytes(b"")
    assert places("rec/[1].wav") == ["rec/[1].wav"]


def test_a_list_has_a_place_in_each_line_and_what_is_not_there_keeps_nobody_from_the_rest(archive):
    (archive / "list").write_bytes(b"rec/b.wav\r\n\nrec/gone.wav\nftp://host/a.wav\nrec\n nul\0.wav\n")
    listing = find(["rec/b.wav"], [archive / "list"])
    assert [each.place for each in listing.sources] == ["rec/b.wav"]
    reasons = {each.place: each.reason for each in listing.failures}
    assert reasons["rec/gone.wav"] == "No such file or directory"
    assert "http://" in reasons["ftp://host/a.wav"]
    assert reasons["rec"] == "not a regular file"
    assert "null byte" in reasons["nul\0.wav"]


@pytest.mark.parametrize("word", ["rec/gone.wav", "rec/*.flac", "ftp://host/a.wav"])
def test_a_word_that_names_nothing_is_refused(archive, word):
    listing = None
    with pytest.raises(UsageError):
        listing = find([word], [])
    assert listing is None


def test_a_file_that_is_named_twice_is_one(archive):
    assert places("rec", "rec/b.wav", "./rec/b.wav") == ["rec/b.wav", "rec/deep/er/a.MP3"]
    assert len(places("rec/b.wav", str(archive / "rec" / "b.wav"))) == 2  # under two names, in two places


def test_two_sources_never_share_results(archive):
    other = Path(str(archive / "rec" / "b.wav").strip("/"))  # a relative path that reads as the absolute one does
    other.parent.mkdir(parents=True)
    other.write_bytes(b"other")
    with pytest.raises(UsageError, match="would both be written to"):
        find([str(other), str(archive / "rec" / "b.wav")], [])


def test_a_changed_file_has_another_version(archive):
    before = find(["rec/b.wav"], []).sources[0].version
    os.utime("rec/b.wav", ns=(1, 1))
    assert find(["rec/b.wav"], []).sources[0].version != before


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("rec/./a.wav", "rec/a.wav"),
        ("/data/rec/a.wav", "data/rec/a.wav"),
        ("rec/../../../../../../../../../../../etc/a.wav", "etc/a.wav"),
        ("s3://bucket/day/a.wav", "s3/bucket/day/a.wav"),
        ("s3://bucket/../..//a.wav", "s3/bucket/%2E%2E/%2E%2E/%/a.wav"),
        ("https://me:secret@host:80/a.wav", "https/host:80/a.wav"),
        (os.fsdecode(b"caf\xe9.wav"), "caf%E9.wav"),
    ],
)
def test_results_mirror_the_place(place, name):
    assert result_name(place) == name


def test_addresses_that_differ_in_their_query_have_results_of_their_own():
    names = {result_name(f"https://host/get?id={each}") for each in range(3)}
    assert len(names) == 3
    assert not any("id=" in each for each in names)


@given(st.text() | st.text().map(lambda text: f"s3://{text}") | st.binary().map(os.fsdecode))
def test_no_name_leads_out_of_the_folder(place):
    try:
        name = result_name(place)
    except ValueError:  # no address
        return
    path = Path("/results") / name
    assert path.is_relative_to("/results")
    assert ".." not in path.parts
    assert "\0" not in name
    assert all(0 < len(each.encode()) <= sources.LONGEST_COMPONENT + 20 for each in name.split("/"))


def test_what_is_shown_has_no_secrets_and_is_text():
    assert shown("https://me:secret@host/a.wav?signature=secret") == "https://host/a.wav?…"
    assert shown(os.fsdecode(b"caf\xe9.wav")) == "caf\\xe9.wav"
