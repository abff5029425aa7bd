from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_monitor.persistence.codecs.redaction import REDACTED, is_secret_name, redact, redact_certain, redact_text
from vllm_monitor.records import LifecycleState

SECRET_NAMES = [
    "HF_TOKEN",
    "apiKey",
    "--api-key",
    "db_password",
    "api_keys",
    "OPENAI_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ACCESS_KEY_ID",
    "auth_token",
    "Authorization",
    "key",
    "token",
    "mysecret",
    "hftoken",
    "VLLM_API_KEY",
    "x-api-key",
    "PGPASSWORD",
    "DB_PASS",
    "session_token",
    "GITHUB_TOKEN",
    "Passwd",
    "CREDENTIALS",
    "client_secret",
    "HUGGING_FACE_HUB_TOKEN",
    "PASSWORD",
    "auth",
    "MYPASS",
    "DBPASS",
    "APP_PWD",
    "GITHUB_PAT",
]
HARMLESS_NAMES = [
    "max_tokens",
    "tokenizer",
    "tokenizer_mode",
    "keep",
    "key_value",
    "keyboard",
    "max_num_batched_tokens",
    "eos_token",
    "pad_token_id",
    "author",
    "PWD",
    "kv_cache_dtype",
    "monkey",
    "primary_key",
    "num_tokens",
    "time_per_output_token",
    "bypass",
    "ssl_keyfile",
    "ssl_key_file",
    "tokens",
    "token_ids",
    "kv_transfer_config",
    "enable_auto_tool_choice",
    "max_model_len",
    "keys",
    "tokenize",
    "skip_tokenizer_init",
]


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_secret_names(name: str) -> None:
    assert is_secret_name(name)
    assert redact({name: "xyzzy"}) == {name: REDACTED}
    assert redact({"deep": [{name: ["xyzzy"]}]}) == {"deep": [{name: [REDACTED]}]}


@pytest.mark.parametrize("name", HARMLESS_NAMES)
def test_harmless_names(name: str) -> None:
    assert redact({name: "xyzzy"}) == {name: "xyzzy"}


@pytest.mark.parametrize(
    "text",
    [
        "curl -H 'Authorization: Bearer xyzzy'",
        "Bearer xyzzy",
        "Authorization: Basic eHl6enk6eHl6enk=xyzzy",
        "--api-key xyzzy",
        "--api-key=xyzzy --port 8000",
        "vllm serve m --api-key 'xyzzy plugh'",
        "http://user:xyzzy@host/path",
        "https://user:p@xyzzy@host/path",
        "sk-xyzzy1234567890",
        "key sk-proj-xyzzyabcdefghijklmnopqrst in text",
        "hf_xyzzyABCDEFGH1234567",
        "ghp_xyzzy0123456789abcdef",
        "HF_TOKEN=xyzzy vllm serve",
        '{"api_key": "xyzzy"}',
        "{'password': 'xyzzy'}",
        "http://host/?api_key=xyzzy&x=1",
        "password: xyzzy",
        "password:xyzzy",
        '{"a": "{\\"api_key\\": \\"xyzzy\\"}"}',
        "--api-key:xyzzy",
        "AWS_SESSION_TOKEN xyzzy0123456789",
        "https://xyzzy0123456789abcdef@github.com/x",
        "https://x.blob.core.windows.net/a?sv=1&sig=xyzzy",
        "https://hooks.slack.com/services/T0/B0/xyzzy",
        "curl -s -u user:xyzzy http://host",
        "-----BEGIN RSA PRIVATE KEY-----\nxyzzy\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_secrets_in_text(text: str) -> None:
    hidden = redact_text(text)
    assert "xyzzy" not in hidden
    assert REDACTED in hidden
    assert redact_text(hidden) == hidden
    assert redact([text]) == [hidden]
    assert "xyzzy" not in str(redact({"args": {"deep": (text, {"more": text})}}))


@pytest.mark.parametrize(
    "text",
    [
        "basic usage of the bearer token",
        "task-risk-management-of-everything",
        "--tokenizer foo --max-tokens 5 --max-num-batched-tokens=2048",
        "hf_overrides",
        "http://host:8000/path",
        "meta-llama/Llama-3-8B",
        "vllm:generation_tokens_total 5",
        "time: 12:30, token_ids: 5",
        "--key-value 3",
        "sk-learn",
        "https://git@github.com/x",
        "docker run -u 1000:1000 image",
        "HF_TOKEN environment variable is not set",
        "token:3 key:value auth:basic",
        "http://host/?signal=3",
        "host:8000",
    ],
)
def test_harmless_text(text: str) -> None:
    assert redact_text(text) == text


def test_command_lines() -> None:
    argv = ["vllm", "serve", "--api-key", "a", "b", "--port", "8000", "--hf-token=c", "--max-tokens", "5"]
    assert redact(argv) == [
        "vllm", "serve", "--api-key", REDACTED, REDACTED, "--port", "8000", f"--hf-token={REDACTED}",
        "--max-tokens", "5",
    ]  # fmt: skip
    assert redact({"token": None, "password": "", "auth": True}) == {"token": None, "password": "", "auth": True}


def test_pairs_and_paths() -> None:
    assert redact([["HF_TOKEN", "x"]]) == [["HF_TOKEN", REDACTED]]
    assert redact([("api_key", "x"), ("port", "8000")]) == [("api_key", REDACTED), ("port", "8000")]
    assert redact(["api_key", "MY_SECRET_7"]) == ["api_key", REDACTED]
    for harmless in (["key", "value"], ["token", "count"], ["passwords", "secrets"], ["api_key"], ("api_key", 3)):
        assert redact(harmless) == harmless
    assert redact(Path("/x/--api-key=xyzzy")) == Path(f"/x/--api-key={REDACTED}")
    assert redact(Path("/models/llama")) == Path("/models/llama")


@pytest.mark.parametrize("name", ["OLDPWD", "OLD_PWD", "compass", "first_pass", "pat", "format_pat"])
def test_names_that_only_end_alike(name: str) -> None:
    assert not is_secret_name(name)


@given(
    st.recursive(
        st.one_of(st.text(max_size=30), st.integers(), st.none(), st.binary(max_size=10)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=12), inner, max_size=3)),
    )
)
def test_redacting_twice_changes_nothing(value: Any) -> None:
    once = redact(value)
    assert redact(once) == once


def test_members_of_enums_stay_what_they_are() -> None:
    kept = redact({"state": LifecycleState.READY, "all": [LifecycleState.ERROR]})
    assert kept["state"] is LifecycleState.READY
    assert kept["all"][0] is LifecycleState.ERROR


CERTAIN = [
    ("Authorization: Bearer abcdef0123456789abcdef", "Authorization: Bearer [redacted]"),
    ("hf_" + "a1" * 17, "[redacted]"),
    ("cloning https://user:hunter2@host/x", "cloning https://user:[redacted]@host/x"),
    ("AKIAABCDEFGHIJKLMNOP", "[redacted]"),
    ("-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----", "[redacted]"),
]


@pytest.mark.parametrize(("text", "hidden"), CERTAIN)
def test_what_can_only_be_a_secret(text: str, hidden: str) -> None:
    assert redact_certain({"a": [text, (text,)]}) == {"a": [hidden, (hidden,)]}
    assert redact_certain(hidden) == hidden


@pytest.mark.parametrize(
    "value",
    [
        {"key": "value", "token": "eos", "password": "see the vault"},
        "sk-learn-0.24 is not a key, and hf_transfer is a package",
        "Bearer tokens are sent; Basic settings follow: key=3",
        LifecycleState.READY,
        b"hf_bytes",
        None,
        3.5,
    ],
)
def test_ordinary_values_stay_beside_certain_secrets(value: object) -> None:
    assert redact_certain(value) == value
    assert type(redact_certain(value)) is type(value)


@pytest.mark.parametrize(
    "name",
    ["PASS", "JWT", "ACCESS_JWT", "DB_PW", "SSHPASS", "AWS_CREDS", "MASTERKEY", "OTP", "PIN", "SENTRY_DSN",
     "SLACK_WEBHOOK_URL", "AZURE_STORAGE_CONNECTION_STRING"],
)  # fmt: skip
def test_more_names_of_secrets(name: str) -> None:
    assert redact({name: "leak"}) == {name: REDACTED}


@pytest.mark.parametrize("name", ["pin_memory", "num_creds_checked_per", "connection_timeout", "passes", "string"])
def test_names_that_are_none(name: str) -> None:
    kept = {name: "value"}
    assert (redact(kept) == kept) is ("creds" not in name)


@pytest.mark.parametrize(
    "value",
    [
        "api_key = leak", "aws_secret_access_key = leak", "api_key : leak", "api_key => leak", 'api_key: ["leak"]',
        "Authorization: Token leak", "proxy-authorization=Digest leak", "sshpass -p leak ssh host",
        "mysql -u root -pleak db", "<password>leak</password>", "the password is leak", 'password "leak"',
        {"name": "HF_TOKEN", "value": "leak"}, {b"HF_TOKEN": "leak"}, {"--api-key=leak": 1},
    ],
)  # fmt: skip
def test_more_forms_of_secrets(value: object) -> None:
    hidden = redact({"arguments": value})
    assert "leak" not in repr(hidden)
    assert redact(hidden) == hidden


@pytest.mark.parametrize(
    "text", ["max_tokens = 5", "tokenizer: foo", "password policy", "a < b > c", "git push -p", "x: [1, 2]", "a => b"]
)
def test_texts_that_have_none(text: str) -> None:
    assert redact(text) == text
