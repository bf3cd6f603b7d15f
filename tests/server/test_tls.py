"""HTTPS at the container's listener."""

import ssl
import subprocess

import aiohttp
import pytest

from tests.server.stubs import Upper
from whisper_byoc.cli.main import main
from whisper_byoc.errors import UsageError
from whisper_byoc.http import server_tls
from whisper_byoc.server.run import Server, ServerConfig


async def test_a_container_with_a_certificate_speaks_https_alone(certificate):
    trusting = ssl.create_default_context(cafile=certificate[0])
    config = ServerConfig("127.0.0.1", 0, tls=server_tls(*certificate))
    async with Server({"upper": Upper()}, config) as server, aiohttp.ClientSession() as http:
        await server.loaded()
        url = f"https://localhost:{server.port}"
        async with http.put(f"{url}/live/job/source", data=b"abc", ssl=trusting) as answer:
            assert answer.status == 200
        async with http.get(f"{url}/live/job/output", ssl=trusting) as answer:
            assert await answer.read() == b"ABC"
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await http.get(f"{url}/health")
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await http.get(f"http://localhost:{server.port}/health")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get(f"{url}/health", ssl=old)


def test_one_file_may_have_both(certificate, tmp_path):
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(each.read_bytes() for each in certificate))
    assert server_tls(both)


def test_what_is_no_certificate_with_its_key_is_refused_in_a_sentence(certificate, tmp_path):
    cert, key = certificate
    locked = tmp_path / "locked.pem"
    subprocess.run(["openssl", "rsa", "-aes128", "-passout", "pass:word", "-in", key, "-out", locked], check=True)
    for pair in ((cert, None), (key, cert), (cert, locked), (tmp_path / "none.pem", key), (tmp_path, None)):
        with pytest.raises(UsageError, match=r"no certificate with its key in PEM.*: \S"):
            server_tls(*pair)


def test_a_key_alone_is_wrong_usage(certificate, capsys):
    assert main(["serve", "--pipeline", "passthrough", "--tls-key", str(certificate[1])]) == 2
    assert "--tls-cert" in capsys.readouterr().err
