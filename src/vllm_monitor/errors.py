"""Every error this package raises, and what the operator should do about it.

::

    VLLMMonitorError
    ├── ConfigurationError            a setting, an argument or a file we were given makes no sense
    ├── TargetError                   a vLLM server could not be read
    │   ├── TargetUnreachableError    no connection: wrong host, wrong port, TLS, time-out
    │   ├── NotAMetricsPageError      something answered, but not with Prometheus text
    │   └── PageTooLargeError         the page is larger than we are willing to read
    ├── StorageError                  the store could not do what was asked
    │   ├── StoreUnavailableError     cannot be opened or written: permissions, disk, lock
    │   ├── StoreTooNewError          written by a newer version of this package
    │   ├── StoreDamagedError         bytes that do not match their checksum or format
    │   ├── RecordNotFoundError       no record with that id (also a LookupError)
    │   ├── StaleRevisionError        somebody else changed the entry meanwhile
    │   └── ArchiveError              an archive that is damaged, hostile, or not one of ours
    ├── ValueNotStorableError         a value the store could not return unchanged (also a ValueError)
    ├── InvalidConditionError         a guardrail's condition that cannot be understood (also a ValueError)
    ├── InvalidTransitionError        a lifecycle state that cannot follow the one before (also a ValueError)
    ├── PluginError                   a plugin that cannot be loaded, or that failed
    │   └── PluginNotTrustedError     its source is not on the operator's list of trust
    ├── RecordingError                a recording that cannot be read or written
    └── LeaseHeldError                another process already watches this target into this store

Each carries ``hint``: one sentence that says what to do next. ``str(error)`` shows both.
"""

from __future__ import annotations

__all__ = [
    "ArchiveError",
    "ConfigurationError",
    "InvalidConditionError",
    "InvalidTransitionError",
    "LeaseHeldError",
    "NotAMetricsPageError",
    "PageTooLargeError",
    "PluginError",
    "PluginNotTrustedError",
    "RecordNotFoundError",
    "RecordingError",
    "StaleRevisionError",
    "StorageError",
    "StoreDamagedError",
    "StoreTooNewError",
    "StoreUnavailableError",
    "TargetError",
    "TargetUnreachableError",
    "VLLMMonitorError",
    "ValueNotStorableError",
]


class VLLMMonitorError(Exception):
    """Base of every error of this package.

    Args:
        message: What went wrong, with the name of the thing concerned.
        hint: What the operator should do next, as a full sentence.
    """

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[VLLMMonitorError], message: str, hint: str) -> VLLMMonitorError:
    """Make an error again after it crossed a process boundary."""
    return kind(message, hint=hint)


class ConfigurationError(VLLMMonitorError, ValueError):
    """A setting, an argument or a file that we were given makes no sense."""


class TargetError(VLLMMonitorError):
    """A vLLM server could not be read."""


class TargetUnreachableError(TargetError):
    """No connection to the server: wrong host, wrong port, TLS, or a time-out."""


class NotAMetricsPageError(TargetError):
    """Something answered, but not with a page of Prometheus metrics."""


class PageTooLargeError(TargetError):
    """The page is larger than we are willing to read."""


class StorageError(VLLMMonitorError):
    """The store could not do what was asked."""


class StoreUnavailableError(StorageError):
    """The store cannot be opened or written."""


class StoreTooNewError(StorageError):
    """The store was written by a newer version of this package; it was not touched."""


class StoreDamagedError(StorageError):
    """Stored bytes do not match their checksum or their format."""


class RecordNotFoundError(StorageError, LookupError):
    """No record with that id."""


class StaleRevisionError(StorageError):
    """The entry was changed by somebody else since it was read."""


class ArchiveError(StorageError):
    """An archive that is damaged, hostile, or not what its manifest says; nothing of it was imported."""


class ValueNotStorableError(VLLMMonitorError, ValueError):
    """A value that the store could not give back unchanged, so it is refused at the door."""


class PluginError(VLLMMonitorError):
    """A plugin that cannot be loaded, or that failed; the monitor goes on without it."""


class PluginNotTrustedError(PluginError):
    """A plugin whose source the operator has not trusted; it does not run."""


class RecordingError(VLLMMonitorError):
    """A recording that cannot be read or written."""


class LeaseHeldError(VLLMMonitorError):
    """Another process already watches this target into this store."""


class InvalidTransitionError(VLLMMonitorError, ValueError):
    """A lifecycle state that cannot follow the one before; the hint names those that can."""


class InvalidConditionError(VLLMMonitorError, ValueError):
    """A guardrail's condition that cannot be parsed, or speaks of something that is not there."""
