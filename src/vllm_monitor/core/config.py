"""Settings of the monitor: arguments, ``VLLMMON_*`` variables, a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, TomlConfigSettingsSource

from vllm_monitor.collectors import authorisation_headers, make_tls_context, normalise_target
from vllm_monitor.errors import ConfigurationError
from vllm_monitor.guardrails import parse_destination
from vllm_monitor.predictive_failure_detection import PredictionSettings

__all__ = ["MonitorConfig", "TargetSettings"]


STORE_TABLE = "store"


class TargetSettings(BaseModel):
    """What is particular to one target.

    Args:
        url: The server's base URL, normalised.
        api_key: Bearer token sent with every request to this target; never stored, logged or shown.
        log_file: The server's log, when it is on this machine.
        labels: Labels of the operator's own (team, cluster ...), kept with the target's events.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str
    api_key: SecretStr | None = None
    log_file: Path | None = None
    labels: dict[str, str] = Field(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _readable(error) from None  # the original shows what was given, which may be a secret

    @field_validator("api_key")
    @classmethod
    def _check_key(cls, key: SecretStr | None) -> SecretStr | None:
        return _usable(key)

    @field_validator("url")
    @classmethod
    def _normalise(cls, url: str) -> str:
        return normalise_target(url)


class MonitorConfig(BaseSettings):
    """Settings of a monitor.

    Every field can come from an argument, from the variable ``VLLMMON_<NAME>`` or from a TOML file
    (:meth:`from_toml`), in this order of precedence.

    Args:
        targets: URLs of the servers to watch from the start.
        interval_seconds: Time between two scrapes of a target, 0.1 to 3600.
        timeout_seconds: How long to wait for ``/metrics`` and ``/health``, 0.1 to 300.
        canary: Send a 1-token request every ``canary_interval_seconds``; off by default, since it is load.
        canary_interval_seconds: Time between two canaries, at least 0.5.
        canary_timeout_seconds: A canary without a token after this long has failed.
        ttft_objective_seconds: Longest time to first token that is still good; guardrails use it.
        inter_token_objective_seconds: Longest time between two tokens that is still good; likewise.
        spool_dir: Where the part inside the servers leaves what it saw (docs/inside.md); by default the folder of each
            server's user.
        predict: Predict failures.
        prediction_least_probability: No failure is predicted below it, 0 to 1; by default the shipped thresholds.
        prediction_daily_budget: Most predictions for one server in 24 hours.
        alert_webhooks: Where alerts go, each ``alertmanager+URL``, ``slack+URL`` or ``json+URL``.
        api_key: Bearer token for all targets that have none of their own.
        ca_file: Certificates to trust for https, instead of those of the system.
        insecure: Do not verify https certificates.
        max_page_bytes: A larger page of metrics is refused.
    """

    model_config = SettingsConfigDict(env_prefix="VLLMMON_", frozen=True, extra="forbid", hide_input_in_errors=True)

    targets: Annotated[tuple[str, ...], NoDecode] = ()
    interval_seconds: float = Field(default=1.0, ge=0.1, le=3600.0)
    timeout_seconds: float = Field(default=3.0, ge=0.1, le=300.0)
    canary: bool = False
    canary_interval_seconds: float = Field(default=2.0, ge=0.5, le=3600.0)
    canary_timeout_seconds: float = Field(default=5.0, ge=0.5, le=300.0)
    ttft_objective_seconds: float = Field(default=2.0, gt=0.0, allow_inf_nan=False)
    inter_token_objective_seconds: float = Field(default=0.2, gt=0.0, allow_inf_nan=False)
    spool_dir: Path | None = None
    predict: bool = True
    prediction_least_probability: float | None = Field(default=None, gt=0.0, lt=1.0, allow_inf_nan=False)
    prediction_daily_budget: int = Field(default=48, ge=0, le=10_000)
    alert_webhooks: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    api_key: SecretStr | None = None
    ca_file: Path | None = None
    insecure: bool = False
    max_page_bytes: int = Field(default=16 * 1024 * 1024, ge=1024)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _readable(error) from None  # the original shows what was given, which may be a secret

    @field_validator("alert_webhooks")
    @classmethod
    def _check_webhooks(cls, webhooks: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for webhook in webhooks:
            parse_destination(webhook.get_secret_value())
        return webhooks

    @field_validator("targets", "alert_webhooks", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """A variable holds several targets separated by commas."""
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("targets")
    @classmethod
    def _normalise(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(normalise_target(target) for target in targets))

    @field_validator("api_key")
    @classmethod
    def _check_key(cls, key: SecretStr | None) -> SecretStr | None:
        return _usable(key)

    @model_validator(mode="after")
    def _check_certificates(self) -> MonitorConfig:
        if self.ca_file is not None:
            make_tls_context(str(self.ca_file), insecure=self.insecure)
        return self

    def prediction_settings(self) -> PredictionSettings:
        """What of these is of predictions."""
        return PredictionSettings(
            least_probability=self.prediction_least_probability,
            daily_budget=self.prediction_daily_budget,
            ttft_objective_seconds=self.ttft_objective_seconds,
            inter_token_objective_seconds=self.inter_token_objective_seconds,
        )

    @classmethod
    def from_toml(cls, path: Path, **overrides: Any) -> MonitorConfig:
        """Settings from a TOML file; arguments and variables win over it.

        Args:
            path: The file; its keys are the names of the fields. A table ``store`` holds settings of the store, which
                :meth:`store_settings` reads.
            overrides: Fields given here win over everything.

        Raises:
            ConfigurationError: When the file is missing, no TOML, or has a field that does not exist.
        """
        values = cls._read(path)
        values.pop(STORE_TABLE, None)
        from_environment = cls(**overrides)
        chosen = {name: getattr(from_environment, name) for name in from_environment.model_fields_set}
        return cls(**{**values, **chosen})

    @classmethod
    def store_settings(cls, path: Path) -> dict[str, Any]:
        """The table ``store`` of a TOML file: fields of ``PersistenceConfig`` by name; empty when there is none.

        Raises:
            ConfigurationError: When the file is missing, no TOML, or ``store`` is no table.
        """
        table = cls._read(path).get(STORE_TABLE, {})
        if not isinstance(table, dict):
            raise ConfigurationError(f"store in {path} is no table", hint=f"write [{STORE_TABLE}] on a line of its own")
        return table

    @classmethod
    def _read(cls, path: Path) -> dict[str, Any]:
        if not path.is_file():
            raise ConfigurationError(f"there is no file {path}", hint="check the path of the configuration file")
        try:
            return dict(TomlConfigSettingsSource(cls, path)())
        except ValueError as error:
            raise ConfigurationError(f"{path} is not valid TOML: {error}", hint="mend the line it names") from error


def _usable(key: SecretStr | None) -> SecretStr | None:
    if key is not None:
        authorisation_headers(key.get_secret_value())
    return key


def _readable(error: ValidationError) -> ConfigurationError:
    parts = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        words = problem["msg"].removeprefix("Value error, ")
        parts.append(f"{name}: {words}" if name else words)
    return ConfigurationError(
        f"the settings make no sense: {'; '.join(parts)}",
        hint="correct the arguments, the VLLMMON_ variables or the configuration file that set them",
    )
