"""Serve pipelines over HTTP until SIGTERM or Ctrl-C.

PUT /live/JOB/source takes sound or frames, GET /live/JOB/output gives results; see docs/protocol.md.
"""

import argparse
import asyncio
import dataclasses
from typing import Any

from whisper_byoc.cli.options import (
    CONTAINER_PORT,
    Parser,
    Repeated,
    add_access,
    add_beam,
    add_engine,
    add_logging,
    add_model_dir,
    amount,
    byte_count,
    count,
    language_tag,
    port,
    seconds,
    start_log,
    tls_of,
)
from whisper_byoc.errors import UsageError
from whisper_byoc.http import base_url
from whisper_byoc.livepeer import Capability
from whisper_byoc.processors.registry import find
from whisper_byoc.processors.whisper import WhisperSettings
from whisper_byoc.server.core.limits import Limits
from whisper_byoc.server.registration import RegistrationOptions
from whisper_byoc.server.run import Beside, ServerConfig, serve
from whisper_byoc.server.streams.output import DATA_FORMATS
from whisper_byoc.speech.live import POLICIES

LIMIT_OPTIONS = (
    # flag, field of `Limits`, type, help
    ("--max-segment", "segment_bytes", byte_count, "largest segment"),
    ("--max-recording", "recording_bytes", byte_count, "largest whole recording"),
    ("--max-jobs", "jobs", count, "jobs open at once"),
    ("--max-queue", "queue_segments", count, "segments that may wait, per job"),
    ("--max-queue-bytes", "queue_bytes", byte_count, "bytes that may wait, per job"),
    ("--max-results", "kept_results", count, "results kept per job"),
    ("--max-results-bytes", "kept_bytes", byte_count, "bytes of results kept per job"),
    ("--max-transcript-bytes", "transcript_bytes", byte_count, "bytes of transcript kept per job"),
    ("--segment-timeout", "segment_seconds", seconds, "longest work on one segment, in seconds"),
    ("--idle-timeout", "idle_seconds", seconds, "seconds without activity after which a job is ended"),
    ("--linger", "linger_seconds", seconds, "seconds to keep the results of an ended job"),
    ("--drain-live", "drain_live_seconds", amount, "seconds that feeds and streams may continue after SIGTERM"),
    (
        "--drain-timeout",
        "drain_seconds",
        seconds,
        "longest time to exit after SIGTERM and --drain-live, in seconds",
    ),
)


def configure(parser: Parser) -> None:
    parser.group("what is served")
    parser.option(
        "--pipeline",
        "--model",
        "--byocModelID",
        dest="pipelines",
        metavar="NAME",
        action=Repeated,
        env=("MODEL_ID",),
        convert=find,
        help="pipeline to serve; may be repeated (see `whisper-byoc pipelines`; default whisper-tiny)",
    )
    parser.option("--language", help="language spoken (de, en-US, german), or auto", convert=language_tag, default="en")
    parser.option(
        "--partial-policy",
        help="how partial text is chosen from an unfinished utterance",
        choices=sorted(POLICIES),
        default="attention",
    )
    parser.group("model")
    parser.option("--workers", help="number of workers (default: chosen at startup)", convert=count)
    parser.option("--threads", help="CPU threads per worker (default: chosen at startup)", convert=count)
    parser.option(
        "--max-live",
        help="live jobs at once, per speech pipeline (default: as many as fit, as measured)",
        convert=count,
    )
    add_engine(parser)
    add_beam(parser)
    add_model_dir(parser)
    parser.group("where it listens")
    parser.option("--host", help="address to listen on", default="127.0.0.1")
    parser.option("--port", help="port to listen on; 0 lets the system choose", convert=port, default=CONTAINER_PORT)
    parser.option(
        "--data-format",
        help="line format of a stream's data channel, unless the stream chooses one",
        env=("DATA_FORMAT",),
        choices=DATA_FORMATS,
        default="object",
    )
    parser.option("--worker-type", help="what /version reports as pipeline", env=("PIPELINE",), default="byoc")
    add_access(parser)
    add_registration(parser)
    add_limits(parser)
    add_logging(parser)


def run(args: argparse.Namespace, beside: Beside | None = None) -> int:
    """Serve until a signal; `beside` is what else is to be served."""
    start_log(args)
    settings = WhisperSettings(
        language=args.language,
        workers=args.workers,
        threads=args.threads,
        model_dir=args.model_dir,
        policy=args.partial_policy,
        engine=args.engine,
        audio_context=args.audio_context,
        beam=args.beam,
        live=args.max_live,
    )
    specs = list({(spec.name, spec.model): spec for spec in args.pipelines or [find("whisper-tiny")]}.values())
    if len({spec.name for spec in specs}) < len(specs):
        raise UsageError(f"two pipelines have the same name: {', '.join(spec.name for spec in specs)}")
    config = ServerConfig(
        host=args.host,
        port=args.port,
        limits=server_limits(args),
        registration=registration_of(args),
        token=args.auth_token,
        tls=tls_of(args),
        capability=args.capability_name,
        worker_type=args.worker_type,
        data_format=args.data_format,
        stream_hosts=args.stream_host,
        allowed_origins=args.allow_origin,
    )
    asyncio.run(serve({spec.name: spec.make(settings) for spec in specs}, config, beside=beside))
    return 0


def add_registration(parser: Parser) -> None:
    parser.group("orchestrators")
    parser.option(
        "--orch-url",
        env=("ORCH_URL", "LIVEPEER_ORCH_URL"),
        convert=orchestrator_urls,
        default=(),
        metavar="URL[,URL]",
        help="orchestrators to register at (default: none)",
    )
    parser.secret("--orch-secret", help="their -orchSecret", env=("ORCH_SECRET", "LIVEPEER_ORCH_SECRET"))
    parser.switch("--orch-verify-tls", help="verify the certificates of orchestrators, which are usually self-signed")
    add_capability(parser)
    parser.option(
        "--reg-interval",
        help="seconds between checks that the server is still registered",
        env=("REG_INTERVAL_SECONDS", "LIVEPEER_REG_INTERVAL_SECONDS"),
        convert=seconds,
        default=60.0,
    )


def add_capability(parser: Parser) -> None:
    def add(name: str, *, help: str, livepeer_name: str = "", **rest: Any) -> None:
        env = (f"CAPABILITY_{name}", f"LIVEPEER_{livepeer_name or name}")
        parser.option(f"--capability-{name.lower().replace('_', '-')}", help=help, env=env, **rest)

    add("NAME", livepeer_name="CAPABILITY_NAME", help="name to register (default: the first pipeline's)", default="")
    add("DESCRIPTION", livepeer_name="CAPABILITY_DESCRIPTION", help="description to register", default="")
    url_help = "where orchestrators reach this server (default: http://HOSTNAME:PORT)"
    add("URL", livepeer_name="CAPABILITY_URL", help=url_help, default="")
    add("CAPACITY", help="jobs at once; 0: as many as fit, as measured", convert=amount, default=0)
    add("PRICE_PER_UNIT", help="price per second", convert=amount, default=0)
    add("PRICE_SCALING", help="number that the price is divided by", convert=count, default=1)
    add("PRICE_CURRENCY", help="currency of the price; empty is wei", default="")


def orchestrator_urls(text: str) -> tuple[str, ...]:
    return tuple(base_url(each, scheme="https") for each in text.split(",") if each.strip())


def registration_of(args: argparse.Namespace) -> RegistrationOptions | None:
    """Return the registration that the options ask for; None without an orchestrator."""
    if not args.orch_url:
        return None
    capability = Capability(
        name=args.capability_name,
        description=args.capability_description,
        url=args.capability_url,
        capacity=args.capability_capacity,
        price_per_unit=args.capability_price_per_unit,
        price_scaling=args.capability_price_scaling,
        currency=args.capability_price_currency,
    )
    return RegistrationOptions(args.orch_url, args.orch_secret, capability, args.orch_verify_tls, args.reg_interval)


def add_limits(parser: Parser) -> None:
    parser.group("limits")
    defaults = {field.name: field.default for field in dataclasses.fields(Limits)}
    for flag, name, convert, text in LIMIT_OPTIONS:
        parser.option(flag, dest=name, help=text, convert=convert, default=defaults[name], metavar="N")


def server_limits(args: argparse.Namespace) -> Limits:
    return Limits(**{name: getattr(args, name) for _, name, _, _ in LIMIT_OPTIONS})
