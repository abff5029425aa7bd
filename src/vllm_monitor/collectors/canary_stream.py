"""Reading the answer to a canary: a stream of server-sent events with one token, or an error inside."""

from __future__ import annotations

import json
from typing import Any

from vllm_monitor.collectors.probe_failures import TruncatedBodyError
from vllm_monitor.errors import PageTooLargeError
from vllm_monitor.records import ProbeFailure

__all__ = ["CanaryStream"]

_MAX_BYTES = 2**20
_MAX_DETAIL = 200


class CanaryStream:
    """Judges one streamed completion. Errors inside a stream come with HTTP status 200.

    Args:
        url: For messages.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._pending = b""
        self._size = 0
        self._done = False
        self.has_token = False
        self.failure: ProbeFailure | None = None

    def feed(self, chunk: bytes) -> None:
        """Take bytes as they arrive.

        Raises:
            PageTooLargeError: When far more arrives than a single token needs.
        """
        self._size += len(chunk)
        if self._size > _MAX_BYTES:
            raise PageTooLargeError("the answer to a request for one token does not end", hint="is this a vLLM server?")
        *lines, self._pending = (self._pending + chunk).split(b"\n")
        for line in lines:
            self._take(line.strip())

    def finish(self) -> None:
        """The stream has ended.

        Raises:
            TruncatedBodyError: When it broke off before its end mark.
        """
        # An answer in one piece, from a proxy that does not stream, has neither prefix nor end mark.
        whole = self._pending.strip()
        self._pending = b""
        self._take(whole)
        if whole.startswith(b"{"):
            self._take_document(whole)
            self._done = True
        if self.failure is None and not self._done:
            raise TruncatedBodyError
        if self.failure is None and not self.has_token:
            self.failure = ProbeFailure("other", f"{self._url} ended its answer without a token")

    def _take(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        data = line[len(b"data:") :].strip()
        if data == b"[DONE]":
            self._done = True
        else:
            self._take_document(data)

    def _take_document(self, text: bytes) -> None:
        try:
            document: Any = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            self._fail("other", "sent an event that is no JSON object")
        elif document.get("error") is not None:
            self._fail("http", f"reported an error inside the stream: {_describe(document['error'])}")
        else:
            choices = document.get("choices")
            if isinstance(choices, list) and choices and isinstance(choices[0], dict):
                if choices[0].get("finish_reason") == "abort":
                    self._fail("other", "aborted the request: somebody paused the server or aborted its requests")
                else:
                    self.has_token = True

    def _fail(self, kind: str, what: str) -> None:
        if self.failure is None:
            self.failure = ProbeFailure(kind, f"{self._url} {what}")


def _describe(error: object) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    text = " ".join(str(message).split())
    return text if len(text) <= _MAX_DETAIL else f"{text[:_MAX_DETAIL]}..."
