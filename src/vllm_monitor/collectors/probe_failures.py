"""Why a request failed, in words that say what to do; and what recordings wrote about it."""

from __future__ import annotations

import errno
import ssl

import aiohttp

from vllm_monitor.errors import NotAMetricsPageError, PageTooLargeError, VLLMMonitorError
from vllm_monitor.records import ProbeFailure

__all__ = ["TruncatedBodyError", "failure_from_exception", "failure_from_recorded_status", "failure_from_status"]

_MAX_DETAIL = 160


class TruncatedBodyError(Exception):
    """The body of an answer ended too early."""


def failure_from_exception(error: BaseException, url: str, timeout_seconds: float) -> ProbeFailure:
    """The failure that an exception of a request stands for.

    Args:
        error: What was raised. Its text never holds the API key, which travels in a header.
        url: The URL that was asked.
        timeout_seconds: The time that was allowed.
    """
    if isinstance(error, TimeoutError):
        return ProbeFailure(
            "timeout",
            f"{url} did not answer within {timeout_seconds:g} s: the server is busy, frozen or unreachable",
        )
    if isinstance(error, NotAMetricsPageError):
        return ProbeFailure("not_metrics", f"{url} returned {error}")
    if isinstance(error, PageTooLargeError):
        return ProbeFailure("too_large", f"{url}: {error}")
    if isinstance(error, VLLMMonitorError):
        return ProbeFailure("other", f"{url}: {error}")
    if isinstance(error, (TruncatedBodyError, aiohttp.ClientPayloadError)):
        return ProbeFailure(
            "truncated", f"the answer of {url} broke off: the server died, or something between us cut it"
        )
    return _failure_of_connection(error, url) or ProbeFailure(
        "other", f"{url} could not be read: {type(error).__name__}: {_shorten(str(error))}"
    )


def failure_from_status(status: int, url: str, *, api_key_given: bool) -> ProbeFailure:
    """The failure that an HTTP status other than 200 stands for."""
    if status in {401, 403}:
        advice = (
            "the API key that was given is not accepted"
            if api_key_given
            else "pass the key of the server with --api-key or VLLMMON_API_KEY"
        )
    elif status == 404:
        advice = "wrong path or port? Give the root of the vLLM server, such as http://127.0.0.1:8000"
    elif status in {502, 504}:
        advice = "a proxy in front of the server cannot reach it"
    elif status == 503:
        advice = "the server, or a proxy in front of it, is not able to serve"
    elif 300 <= status < 400:
        advice = "it redirects, which we follow on the same server only; give the final URL"
    elif status >= 500:
        advice = "the server failed; look into its log"
    else:
        advice = "is this a vLLM server?"
    return ProbeFailure("http", f"{url} answered with HTTP {status}: {advice}")


def failure_from_recorded_status(text: str) -> ProbeFailure:
    """The failure behind a status such as ``TimeoutError:`` that a recording holds instead of a number."""
    name, _, detail = text.partition(":")
    lowered = detail.lower()
    kind = _RECORDED_KINDS.get(name.strip(), "other")
    if kind == "refused" and ("name or service" in lowered or "getaddrinfo" in lowered or "resolve" in lowered):
        kind = "dns"
    elif name.strip() == "ClientOSError" and "refused" in lowered:
        kind = "refused"
    return ProbeFailure(kind, text.strip().rstrip(":"))


_RECORDED_KINDS = {
    "TimeoutError": "timeout",
    "ServerTimeoutError": "timeout",
    "ConnectionTimeoutError": "timeout",
    "SocketTimeoutError": "timeout",
    "ClientConnectorError": "refused",
    "ConnectionRefusedError": "refused",
    "ClientConnectorDNSError": "dns",
    "ServerDisconnectedError": "reset",
    "ClientOSError": "reset",
    "ConnectionResetError": "reset",
    "BrokenPipeError": "reset",
    "ClientPayloadError": "truncated",
    "ClientConnectorSSLError": "tls",
    "ClientConnectorCertificateError": "tls",
    "timeout": "timeout",
    "refused": "refused",
    "reset": "reset",
    "dns": "dns",
    "tls": "tls",
    "http": "http",
    "not_metrics": "not_metrics",
    "too_large": "too_large",
    "truncated": "truncated",
}


def _failure_of_connection(error: BaseException, url: str) -> ProbeFailure | None:
    cause = getattr(error, "os_error", None) or error
    if isinstance(error, aiohttp.ClientConnectorCertificateError) or isinstance(
        cause, (ssl.SSLCertVerificationError, ssl.CertificateError)
    ):
        reason = getattr(getattr(error, "certificate_error", cause), "verify_message", "") or str(cause)
        return ProbeFailure(
            "tls",
            f"the certificate of {url} is not trusted ({_shorten(reason)}): pass the file of its authority with "
            "--ca-file, or --insecure to skip the check",
        )
    if isinstance(error, aiohttp.ClientSSLError) or isinstance(cause, ssl.SSLError):
        return ProbeFailure(
            "tls", f"no TLS with {url} ({_shorten(str(cause))}): does the server speak http:// on this port?"
        )
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return ProbeFailure("dns", f"the host name of {url} is not known: check its spelling and your DNS")
    number = getattr(cause, "errno", None)
    if isinstance(cause, ConnectionRefusedError) or number == errno.ECONNREFUSED:
        return ProbeFailure("refused", f"nobody listens at {url}: is the server running, and is the port right?")
    if isinstance(error, aiohttp.ServerDisconnectedError) or number in {errno.ECONNRESET, errno.EPIPE}:
        return ProbeFailure("reset", f"{url} closed the connection without an answer: it is stopping, or has died")
    if isinstance(error, aiohttp.ClientConnectorError):
        return ProbeFailure(
            "other", f"no connection to {url} ({_shorten(str(cause))}): check the network between here and there"
        )
    if isinstance(error, aiohttp.ClientResponseError):
        return ProbeFailure("other", f"{url} does not answer in HTTP: wrong port, or a server that wants https://?")
    return None


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_DETAIL else f"{line[:_MAX_DETAIL]}..."
