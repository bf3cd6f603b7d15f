"""The options for joining the network: registration at orchestrators, and the token they must show."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from whisper_byoc.cli.options import Parser, count, seconds
from whisper_byoc.errors import UsageError
from whisper_byoc.server.capability import Capability, Registration

__all__ = ["add_joining", "auth_token_of", "registration_of"]

SECRET = ("ORCH_SECRET", "LIVEPEER_ORCH_SECRET")
TOKEN = ("AUTH_TOKEN", "LIVEPEER_AUTH_TOKEN", "AUTH_KEY")
CAPACITY = ("CAPABILITY_CAPACITY", "LIVEPEER_CAPACITY")
PRICE = ("CAPABILITY_PRICE_PER_UNIT", "LIVEPEER_PRICE_PER_UNIT")
SCALING = ("CAPABILITY_PRICE_SCALING", "LIVEPEER_PRICE_SCALING")
CURRENCY = ("CAPABILITY_PRICE_CURRENCY", "LIVEPEER_PRICE_CURRENCY")
LARGEST_SECRET_FILE = 4096


def add_joining(parser: Parser) -> None:
    """Add the options."""
    parser.option(
        "--orch-url", env=("ORCH_URL", "LIVEPEER_ORCH_URL"), metavar="URL[,URL]",
        help="orchestrators to register at; none, if not set",
    )  # fmt: skip
    parser.option("--orch-secret", help="their -orchSecret, or a file that holds it", env=SECRET)
    parser.switch("--orch-verify-tls", help="check the certificates of orchestrators, which are usually self-signed")
    for flag, text in (
        ("--capability-name", "name to register (default: the first pipeline's)"),
        ("--capability-description", "description to register"),
        ("--capability-url", "where orchestrators reach this server (default: http://HOSTNAME:PORT)"),
    ):
        name = flag.lstrip("-").replace("-", "_").upper()
        parser.option(flag, help=text, env=(name, f"LIVEPEER_{name}"))
    parser.option("--capability-capacity", help="jobs at once (default: the most that may be open)", env=CAPACITY,
                  convert=count)  # fmt: skip
    parser.option("--capability-price-per-unit", help="price of a second", env=PRICE, convert=amount, default=0)
    parser.option("--capability-price-scaling", help="divides the price", env=SCALING, convert=count, default=1)
    parser.option("--capability-price-currency", help="of the price; empty is wei", env=CURRENCY)
    parser.option("--reg-interval", help="seconds between checks that the registration stands", convert=seconds,
                  env=("REG_INTERVAL_SECONDS", "LIVEPEER_REG_INTERVAL_SECONDS"), default=60.0)  # fmt: skip
    parser.option("--auth-token", help="bearer token that clients must show, or a file that holds it", env=TOKEN)


def registration_of(args: argparse.Namespace) -> Registration | None:
    """Collect the registration from the parsed options; None without an orchestrator.

    Takes the secret out of the environment. Raises `UsageError`.
    """
    secret = take_secret(args, "orch_secret", SECRET)
    urls = tuple(each for each in (args.orch_url or "").split(",") if each.strip())
    if not urls:
        return None
    capability = Capability(
        name=args.capability_name or "",
        description=args.capability_description or "",
        url=args.capability_url or "",
        capacity=args.capability_capacity or 0,
        price_per_unit=args.capability_price_per_unit,
        price_scaling=args.capability_price_scaling,
        currency=args.capability_price_currency or "",
    )
    return Registration(urls, secret, capability, args.orch_verify_tls, args.reg_interval)


def auth_token_of(args: argparse.Namespace) -> str:
    """Give the bearer token, empty if none is wanted, and take it out of the environment."""
    return take_secret(args, "auth_token", TOKEN)


def take_secret(args: argparse.Namespace, name: str, variables: tuple[str, ...]) -> str:
    """Move a secret out of the options and the environment, where child processes would inherit it.

    As go-livepeer does for `-orchSecret`, a value that is the path of a file stands for what is in the file.
    """
    value: str = getattr(args, name) or ""
    delattr(args, name)
    for variable in (*variables, f"WHISPER_BYOC_{name.upper()}"):
        os.environ.pop(variable, None)
    try:
        path = Path(value)
        if not value or not path.is_file():
            return value.strip()
    except OSError:  # longer than a path can be
        return value.strip()
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_SECRET_FILE + 1).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{name.upper()}: {path} cannot be read: {error}") from None
    if not text or len(text) > LARGEST_SECRET_FILE:
        raise UsageError(f"{name.upper()}: {path} must hold 1 to {LARGEST_SECRET_FILE} characters")
    return text


def amount(text: str) -> int:
    """A whole number of at least 0."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)
