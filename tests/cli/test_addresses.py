"""Addresses as go-livepeer takes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisper_byoc.cli.addresses import Address
from whisper_byoc.errors import UsageError


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "listen"),
    [
        ("127.0.0.1:8936", "", "127.0.0.1", 8936, "127.0.0.1"), ("127.0.0.1", "", "127.0.0.1", 1, "127.0.0.1"),
        (":8936", "", "", 8936, "0.0.0.0"), ("0.0.0.0:0", "", "0.0.0.0", 0, "0.0.0.0"),
        ("localhost:1", "", "localhost", 1, "localhost"), ("example.org:80", "", "example.org", 80, "0.0.0.0"),
        ("http://example.org", "http", "example.org", 1, "0.0.0.0"), ("[::1]:80", "", "[::1]", 80, "::1"),
        ("https://a:1/base/", "https", "a", 1, "0.0.0.0"), (" a:1 ", "", "a", 1, "0.0.0.0"),
    ],
)  # fmt: skip
def test_addresses(text, scheme, host, port, listen):
    address = Address(text, 1)
    assert (address.scheme, address.host, address.port, address.listen_host) == (scheme, host, port, listen)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a:b",
        "a:99999",
        "a:123456",
        "ftp://a",
        "a b:1",
        "a:1?x",
        "http://u:p@h",
        "u@h:1",
        "::1",
        "a#b:1",
        "a..b:1",
        "http://.a",
        "a" * 64,
    ],
)
def test_what_is_no_address(text):
    with pytest.raises(UsageError, match=r"is not an address such as 127\.0\.0\.1:8936"):
        Address(text, 8936)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_a_usage_error(text):
    try:
        address = Address(text, 8936)
    except UsageError:
        return
    assert 0 <= address.port <= 65535
