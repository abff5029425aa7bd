"""Recordings of what a monitor saw: written line by line, read back in the order in which it was seen."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, Self

from vllm_monitor.collectors.recording_lines import (
    GROUND_TRUTH_KINDS,
    DuplicateKeys,
    LineDecoder,
    LineEncoder,
    MalformedLineError,
)
from vllm_monitor.collectors.recording_truth import RecordedTruth, TruthReader
from vllm_monitor.errors import RecordingError
from vllm_monitor.records import Observation

__all__ = ["DEFAULT_MAX_BYTES", "DEFAULT_MAX_LINE_BYTES", "Recording", "RecordingWriter", "read_recording"]

DEFAULT_MAX_LINE_BYTES = 8 * 2**20
DEFAULT_MAX_BYTES = 4 * 2**30
LEAST_INTERVAL_SECONDS = 0.05
MOST_INTERVAL_SECONDS = 3600.0
_COMPRESSION_LEVEL = 6
_LAST_TIME = 32_503_680_000.0  # the year 3000: what lies beyond is no time but a fault or an attack
_MOST_LATENCY = 86_400.0


class RecordingWriter:
    """Writes observations to a file, compressed if its name ends in ``.gz``. For one thread at a time.

    What a call wrote has left the process when the call returns, so a kill loses at most the line in
    progress; a compressed file that was cut off is readable up to the cut.

    Args:
        path: The file.
        target: The server.
        started_at: Unix seconds.
        interval_seconds: Time between two ticks, where it is constant.
        overwrite: Replace an existing file.

    Raises:
        RecordingError: When the file exists already or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        target: str,
        started_at: float,
        interval_seconds: float | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = path
        self._encoder = LineEncoder(target)
        try:
            self._raw: IO[bytes] = path.open("wb" if overwrite else "xb", buffering=0)
        except FileExistsError as error:
            raise RecordingError(
                f"{path} exists already", hint="choose another name, or allow it to be replaced (--force)"
            ) from error
        except OSError as error:
            raise self._cannot_write(error) from error
        self._compressed: gzip.GzipFile | None = None
        if path.suffix == ".gz":
            self._compressed = gzip.GzipFile(
                filename="", mode="wb", fileobj=self._raw, compresslevel=_COMPRESSION_LEVEL, mtime=0
            )
        try:
            self._write(self._encoder.encode_meta(started_at, interval_seconds))
        except RecordingError:
            self._raw.close()
            raise

    def write(self, *observations: Observation) -> None:
        """Append observations; give those of one tick together, which compresses better.

        Raises:
            RecordingError: When the file cannot be written (disk full).
        """
        if observations:
            self._write("".join(map(self._encoder.encode, observations)))

    def close(self) -> None:
        """Finish the file. Safe to call twice."""
        try:
            if self._compressed is not None:
                self._compressed.close()
            self._raw.close()
        except OSError as error:
            raise self._cannot_write(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, text: str) -> None:
        data = text.encode("utf-8", "backslashreplace")
        try:
            if self._compressed is None:
                view = memoryview(data)
                while view:
                    view = view[self._raw.write(view) :]
            else:
                self._compressed.write(data)
                self._compressed.flush()
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: OSError) -> RecordingError:
        return RecordingError(
            f"the recording {self.path} cannot be written: {error.strerror or error}",
            hint="check that the folder exists, its permissions and the free space",
        )


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording, read.

    Args:
        target: The server, or the name of the file where the recording does not tell.
        observations: In the order of ``visible_at``; equal times in the order of the file. Ground truth is
            not among them.
        interval_seconds: Time between two ticks, where the recording tells.
        malformed_lines: Lines that could not be read and were skipped.
        notes: What was wrong with the file, for a person.
        truth: What really happened, for those who score; never to be shown to what judges.
    """

    target: str
    observations: tuple[Observation, ...]
    interval_seconds: float | None = None
    malformed_lines: int = 0
    notes: tuple[str, ...] = ()
    truth: RecordedTruth = field(default_factory=RecordedTruth)


def read_recording(
    path: Path, *, max_line_bytes: int = DEFAULT_MAX_LINE_BYTES, max_bytes: int = DEFAULT_MAX_BYTES
) -> Recording:
    """Read a recording, ours or another's in the same format.

    An observation depends on nothing but lines that were there when it was made, so cutting a file off at
    some time changes nothing of what was visible before.

    Args:
        path: The file, compressed or not.
        max_line_bytes: A longer line is skipped and counted as malformed.
        max_bytes: Reading ends, with a note, after this much of the unpacked file.

    Raises:
        RecordingError: When there is no file, or it is not a recording.
    """
    reader = _Reader(path, max_line_bytes, max_bytes)
    observations = list(reader.observations())
    if not reader.recognised:
        raise RecordingError(
            f"{path} is {'empty' if reader.total_bytes == 0 else 'not a recording'}",
            hint="a recording has one JSON object per line, each with ts and kind; make one with "
            "`vllm-monitor record URL -o FILE`",
        )
    # sorted() is stable: equal times keep the order of the file.
    return Recording(
        target=reader.decoder.target,
        observations=tuple(sorted(observations, key=lambda observation: observation.visible_at)),
        interval_seconds=reader.interval_seconds,
        malformed_lines=reader.malformed_lines,
        notes=tuple(reader.notes),
        truth=reader.truth.truth(),
    )


class _Reader:
    """Reads one file from its beginning to its end, or to where it is damaged."""

    def __init__(self, path: Path, max_line_bytes: int, max_bytes: int) -> None:
        self._path = path
        self._max_line_bytes = max_line_bytes
        self._max_bytes = max_bytes
        self.decoder = LineDecoder(path.name.removesuffix(".gz").removesuffix(".jsonl"))
        self.interval_seconds: float | None = None
        self.recognised = False
        self.total_bytes = 0
        self.malformed_lines = 0
        self.notes: list[str] = []
        self.truth = TruthReader()

    def observations(self) -> Iterator[Observation]:
        for text in self._lines():
            line = _object(text)
            if line is None or not isinstance(line.get("kind"), str) or "ts" not in line:
                if text.endswith(b"\n"):
                    self.malformed_lines += 1
                elif text.strip():
                    self.notes.append("the last line is incomplete and was left out")
                continue
            self.recognised = True
            if line["kind"] == "meta":
                self._take_meta(line)
                continue
            try:
                observation = self.decoder.decode(line)
            except MalformedLineError:
                self.malformed_lines += 1
            else:
                if observation is None:
                    if line["kind"] in GROUND_TRUTH_KINDS:
                        self.truth.see(line)
                    continue
                if 0.0 <= observation.timestamp <= _LAST_TIME and 0.0 <= observation.latency_seconds <= _MOST_LATENCY:
                    yield observation
                else:
                    self.malformed_lines += 1

    def _take_meta(self, line: dict[str, Any]) -> None:
        target, interval = line.get("target"), line.get("interval")
        if isinstance(target, str) and target:
            self.decoder.target = target
        if isinstance(interval, (int, float)) and LEAST_INTERVAL_SECONDS <= interval <= MOST_INTERVAL_SECONDS:
            self.interval_seconds = float(interval)

    def _lines(self) -> Iterator[bytes]:
        try:
            with self._open() as file:
                yield from self._lines_of(file)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            if self.total_bytes == 0:
                return
            self.notes.append(f"the file is cut off or damaged and was read up to there ({error})")
        except OSError as error:
            raise RecordingError(
                f"the recording {self._path} cannot be read: {error.strerror or error}",
                hint="check the name of the file and its permissions",
            ) from error

    def _open(self) -> BinaryIO | gzip.GzipFile:
        with self._path.open("rb") as probe:
            compressed = probe.read(2) == b"\x1f\x8b"
        return gzip.open(self._path, "rb") if compressed else self._path.open("rb")

    def _lines_of(self, file: BinaryIO | gzip.GzipFile) -> Iterator[bytes]:
        while text := file.readline(self._max_line_bytes):
            self.total_bytes += len(text)
            if len(text) == self._max_line_bytes and not text.endswith(b"\n"):
                self.malformed_lines += 1
                self._skip_line(file)
            elif text.strip():
                yield text
            if self.total_bytes >= self._max_bytes:
                self.notes.append(f"only the first {self.total_bytes / 2**20:.0f} MiB were read")
                return

    def _skip_line(self, file: BinaryIO | gzip.GzipFile) -> None:
        while self.total_bytes < self._max_bytes:
            text = file.readline(65_536)
            self.total_bytes += len(text)
            if not text or text.endswith(b"\n"):
                return


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(text, object_pairs_hook=_keep_duplicates)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _keep_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    return unique if len(unique) == len(pairs) else DuplicateKeys(pairs)
