"""Where and how the store keeps things."""

from __future__ import annotations

import difflib
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vllm_monitor.errors import ConfigurationError

__all__ = ["PersistenceConfig", "StorageBackend"]

_URL_FORMS = "sqlite:///FOLDER/FILE or json:///FOLDER (an absolute folder has four slashes)"
_FILE_FIELDS = ("db_file", "plugins_file", "guardrails_file", "strategies_file", "happy_paths_file", "models_dir")
_INDEX_FILE = "index.db"
_OUR_FILES = (_INDEX_FILE, "leases")
_OUR_SUFFIXES = (".lock", ".jsonl", ".new", ".good", "-wal", "-shm", "-journal")

Days = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class StorageBackend(StrEnum):
    """How records are laid out in ``storage_dir``.

    ``SQLITE`` keeps everything in one SQLite file. ``HYBRID`` keeps plugins, guardrails and strategies as JSON
    documents that a person can read and edit, and all else in SQLite. ``JSON`` keeps all records as
    append-only JSON lines and documents, for small set-ups and for looking inside; one process at a time.
    """

    SQLITE = "sqlite"
    JSON = "json"
    HYBRID = "hybrid"


class PersistenceConfig(BaseModel):
    """Settings of the store. Frozen; every field is validated.

    Args:
        storage_dir: Folder of the store; ``~`` is expanded; created 0700 when first needed.
        backend: See :class:`StorageBackend`.
        metrics_retention_days: How long raw samples are kept.
        checkpoint_retention_days: How long checkpoints are kept.
        prediction_retention_days: How long predictions are kept.
        attempt_retention_days: How long mitigation attempts are kept; ``None`` is for ever.
        learning_retention_days: How long learning data are kept; ``None`` is for ever.
        happy_path_retention_days: How long happy paths are kept; ``None`` is for ever.
        alert_retention_days: How long alerts are kept; ``None`` is for ever.
        event_retention_days: How long events are kept; ``None`` is for ever.
        request_retention_days: How long request summaries are kept; ``None`` is for ever.
        batch_size: Most single samples in one transaction.
        flush_interval_seconds: Longest time between two checkpoints of the write-ahead log, and between two
            attempts of a failed write. Samples are committed much sooner than that, see ``durability``.
        compression_enabled: Compress sample blocks and large values.
        db_file: File name of the database inside ``storage_dir``.
        plugins_file: File name of the plugin documents.
        guardrails_file: File name of the guardrail documents.
        strategies_file: File name of the strategy documents.
        happy_paths_file: File name of the happy paths of the JSON backend.
        models_dir: Folder name of the saved models.
        max_bytes: Size limit of the store; ``None`` is no limit.
        durability: ``normal`` survives any end of the process; ``full`` also survives power loss for what a
            call has acknowledged, at the price of one disk flush per transaction.
        durable_timeout_seconds: Longest time that saving a rare record waits for its commit.
        required: Raise instead of degrading to memory when the store cannot be opened or written.
        trust_file: File that lists the plugins which the operator trusts; ``None`` is the default place.
        url: The store as a URL instead of ``storage_dir`` and ``db_file``: ``sqlite:///FOLDER/FILE`` (``backend`` is
            then ``SQLITE`` unless it is given) or ``json:///FOLDER``. An absolute folder has four slashes.
        block_scrapes: Scrapes of a target after which they are sealed into one compressed block.
        block_seconds: Seconds after which they are sealed even when there are fewer.
        cold_after_seconds: Age at which sealed blocks are joined and compressed once more, slower and smaller.
        maintenance_interval_seconds: Seconds between two looks for what is to be sealed, joined or deleted.
        minute_rollup_retention_days: How long roll-ups of one minute are kept.
        ten_minute_rollup_retention_days: How long roll-ups of ten minutes are kept.
        model_versions_kept: Most versions kept of each model; the oldest go first.

    Raises:
        ConfigurationError: When a value makes no sense; the hint says what to write instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    storage_dir: Path = Path("~/.vllm_monitor")
    backend: StorageBackend = StorageBackend.HYBRID
    metrics_retention_days: Days = 30
    checkpoint_retention_days: Days = 90
    prediction_retention_days: Days = 60
    attempt_retention_days: Days | None = None
    learning_retention_days: Days | None = None
    happy_path_retention_days: Days | None = None
    alert_retention_days: Days | None = 180
    event_retention_days: Days | None = 180
    request_retention_days: Days | None = 7
    batch_size: int = Field(default=1000, ge=1, le=1_000_000)
    flush_interval_seconds: float = Field(default=60, gt=0, allow_inf_nan=False)
    compression_enabled: bool = True
    db_file: str = "monitor.db"
    plugins_file: str = "plugins.json"
    guardrails_file: str = "guardrails.json"
    strategies_file: str = "strategies.json"
    happy_paths_file: str = "happy_paths.json"
    models_dir: str = "models"
    max_bytes: int | None = Field(default=None, ge=1 << 20)
    durability: Literal["normal", "full"] = "normal"
    durable_timeout_seconds: float = Field(default=5, gt=0, allow_inf_nan=False)
    required: bool = False
    trust_file: Path | None = None
    url: str | None = None
    block_scrapes: int = Field(default=1800, ge=2, le=1_000_000)
    block_seconds: float = Field(default=3600, gt=0, allow_inf_nan=False)
    cold_after_seconds: float = Field(default=21_600, ge=0, allow_inf_nan=False)
    maintenance_interval_seconds: float = Field(default=10, gt=0, allow_inf_nan=False)
    minute_rollup_retention_days: Days = 90
    ten_minute_rollup_retention_days: Days = 730
    model_versions_kept: int = Field(default=10, ge=1)

    if not TYPE_CHECKING:  # the checker keeps the signature that pydantic derives from the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise _explained(error) from None

    @property
    def db_path(self) -> Path:
        """The database file; of the JSON backend the index, which is made anew from the lines."""
        return self.storage_dir / (_INDEX_FILE if self.backend is StorageBackend.JSON else self.db_file)

    @field_validator("backend", mode="before")
    @classmethod
    def _by_name(cls, backend: Any) -> Any:
        return backend.lower() if isinstance(backend, str) else backend

    @model_validator(mode="before")
    @classmethod
    def _unfold_url(cls, values: Any) -> Any:
        url = values.get("url") if isinstance(values, dict) else None
        if not isinstance(url, str):
            return values
        if "storage_dir" in values or "db_file" in values:
            message = "give either url, or storage_dir and db_file"
            raise ValueError(message)
        return {**values, **_fields_of_url(url, values.get("backend"))}

    @field_validator("storage_dir", "trust_file", mode="after")
    @classmethod
    def _expand(cls, path: Path | None) -> Path | None:
        if path is None:
            return None
        if "\0" in str(path):
            message = "a path cannot contain a NUL character"
            raise ValueError(message)
        try:
            return path.expanduser()
        except RuntimeError as error:
            message = f"{path} cannot be expanded, write it in full"
            raise ValueError(message) from error

    @field_validator(*_FILE_FIELDS)
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not name or name in {".", ".."} or any(mark in name for mark in ("/", "\\", "\0")):
            message = f"write a plain name inside storage_dir, not {name!r}"
            raise ValueError(message)
        if name in _OUR_FILES or name.endswith(_OUR_SUFFIXES):
            message = f"the store itself uses {name!r}, write another name"
            raise ValueError(message)
        return name

    @model_validator(mode="after")
    def _different_names(self) -> Self:
        fields: dict[str, str] = {}
        for field in _FILE_FIELDS:
            other = fields.setdefault(getattr(self, field), field)
            if other != field:
                message = f"{other} and {field} are the same file, give them different names"
                raise ValueError(message)
        return self


def _fields_of_url(url: str, backend: Any) -> dict[str, Any]:
    """What a URL says of the other fields."""
    scheme, separator, place = url.partition(":///")
    if scheme.split("+")[0].split(":")[0] in {"postgresql", "postgres"}:
        message = f"PostgreSQL is not available yet, write {_URL_FORMS}"
        raise ValueError(message)
    if not separator or scheme not in {"sqlite", "json"} or not Path(place).name:
        message = f"write {_URL_FORMS}, not {url!r}"
        raise ValueError(message)
    of_json = scheme == "json"
    if backend is not None and (str(backend).lower() == StorageBackend.JSON) is not of_json:
        message = f"the url is of {scheme}, the backend is {backend}: leave one of them out"
        raise ValueError(message)
    path = Path(place)
    if of_json:
        return {"storage_dir": path, "backend": StorageBackend.JSON}
    return {"storage_dir": path.parent, "db_file": path.name, "backend": backend or StorageBackend.SQLITE}


def _explained(error: ValidationError) -> ConfigurationError:
    """One error of ours out of what pydantic found."""
    complaints = []
    for fault in error.errors(include_url=False, include_context=False):
        name = ".".join(str(part) for part in fault["loc"]) or "settings"
        text = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, PersistenceConfig.model_fields, n=1)
            text = f"there is no such field{f', did you mean {near[0]}?' if near else ''}"
        elif fault["loc"]:
            text = f"{text[:1].lower()}{text[1:]}, got {fault['input']!r}"
        complaints.append(f"{name}: {text}")
    return ConfigurationError(
        f"PersistenceConfig has {len(complaints)} field(s) that make no sense",
        hint="; ".join(complaints),
    )
