"""go-livepeer's flags on our command lines: those that mean something here, and those that are accepted and ignored."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable
from typing import Any

from whisper_byoc.cli.options import Parser

__all__ = ["accept_others", "go_bool", "go_option", "go_switch", "log_ignored"]

log = logging.getLogger("whisper_byoc.network")

SWITCHES = """
aiServiceRegistry aiVerboseLogs aiWorker autoAdjustPrice broadcaster byoc currentManifest gateway hevcDecoding
httpIngest ignoreMaxPriceIfNeeded ignoreSenderReserve initializeRound localVerify
metricsClientIP metricsPerStream monitor orchestrator redeemer remoteDiscovery remoteSigner reward
startupAvailabilityCheck testTranscoder transcoder useLiveRunners
"""
VALUES = """
aiMinRunnerVersion aiModels aiModelsDir aiProcessingRetryTimeout aiRunnerContainersPerGPU aiRunnerImage
aiRunnerImageOverrides authWebhookUrl blockPollingInterval cliAddr config datadir dataDir depositMultiplier
discoveryTimeout ethAcctAddr ethController ethKeystorePath ethOrchAddr ethPassword ethUrl extraNodes FVfailGsbucket
FVfailGskey gasLimit gatewayHost httpAddr initializeRoundMaxDelay kafkaBootstrapServers kafkaGatewayTopic
kafkaPassword kafkaUsername liveAIAuthApiKey liveAIAuthWebhookUrl liveAICapRefreshModels liveAIHeartbeatHeaders
liveAIHeartbeatInterval liveAIHeartbeatURL liveAISaveNSegments liveAITrickleHostForRunner liveOutSegmentTimeout
livePaymentInterval liveRunnerConfig maxAttempts maxFaceValue maxGasPrice maxPricePerCapability maxPricePerUnit
maxSessions maxTicketEV maxTotalEV maxTransactionReplacements mediaMTXApiPassword metadataAmqpExchange
metadataPublishTimeout metadataQueueUri minGasPrice minPerfScore netint network nodes nvidia objectStore orchAddr
orchBlocklist orchMinLivepeerVersion orchPerfStatsUrl orchSecret orchWebhookUrl pixelsPerUnit priceFeedAddr
pricePerBroadcaster pricePerGateway pricePerUnit recordStore redeemerAddr region remoteSignerUrl rtmpAddr
selectPriceExpFactor selectPriceWeight selectRandFreq selectStakeWeight serviceAddr ticketEV transactionTimeout
transcodingOptions v verifierPath verifierUrl vmodule
"""
"""All flags of go-livepeer 0.9 (cmd/livepeer/starter/flags.go), and `-byoc` of the tutorial."""


class Ignored(argparse.Action):
    """Remembers that a flag was given which has no meaning off-chain."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        """Note the flag."""
        namespace.ignored = [*getattr(namespace, "ignored", ()), "-" + (flag or "").lstrip("-")]


def go_option(parser: Parser, name: str, *, help: str, **rest: Any) -> None:
    """Add `-name VALUE` as go-livepeer has it, with its environment variable `LP_NAME`."""
    parser.option(f"--{name}", help=help, env=(f"LP_{name.upper()}",), metavar=rest.pop("metavar", "VALUE"), **rest)


def go_switch(parser: Parser, name: str, *, help: str) -> None:
    """Add `-name`, which also takes `-name=false`."""
    parser.add_argument(f"--{name}", help=help, nargs="?", const=True, default=False, type=go_bool, metavar="BOOL")


def accept_others(parser: Parser, known: Iterable[str]) -> None:
    """Accept every flag of go-livepeer's that is not among `known`."""
    known = set(known)
    for names, arity in ((SWITCHES, "?"), (VALUES, None)):
        for name in names.split():
            if name not in known:
                flags = (f"-{name}",) if len(name) == 1 else (f"--{name}",)
                parser.add_argument(*flags, action=Ignored, nargs=arity, help=argparse.SUPPRESS)


def log_ignored(args: argparse.Namespace) -> None:
    """Name the flags that were accepted and ignored, in one line."""
    if ignored := getattr(args, "ignored", None):
        log.info("without a meaning off-chain, and ignored: %s", " ".join(dict.fromkeys(ignored)))


def go_bool(text: str) -> bool:
    """Go's `strconv.ParseBool`."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
