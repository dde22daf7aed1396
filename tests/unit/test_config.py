"""Settings: where they come from, what they refuse, what they hide."""

from pathlib import Path

import pytest

from fourfold.config import Settings, from_json, load, to_json
from fourfold.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "fourfold.toml"
    path.write_text(text)
    return path


def test_flags_beat_the_environment_and_that_beats_the_file(tmp_path: Path) -> None:
    """And each value's origin is known."""
    file = write(tmp_path, "[gateway]\nport = 1\nhost = '127.0.0.2'\nmax_jobs = 3\n")
    environ = {"FOURFOLD_GATEWAY__PORT": "2", "FOURFOLD_GATEWAY__MAX_JOBS": "4"}

    loaded = load(file, flags={"gateway.port": 5, "gateway.host": None}, environ=environ)

    gateway = loaded.settings.gateway
    assert (gateway.port, gateway.max_jobs, gateway.host) == (5, 4, "127.0.0.2")
    assert loaded.origins["gateway.port"] == "flag"
    assert loaded.origins["gateway.max_jobs"] == "environment FOURFOLD_GATEWAY__MAX_JOBS"
    assert loaded.origins["gateway.host"] == f"file {file}"


def test_lists_and_tables_come_from_the_environment_as_toml(tmp_path: Path) -> None:
    """A list in brackets; plain text stays text."""
    environ = {
        "FOURFOLD_GATEWAY__ORCHESTRATORS": '["https://127.0.0.1:1"]',
        "FOURFOLD_GATEWAY__MODEL_ALIASES": '{"a/b" = "c/d"}',
        "FOURFOLD_GATEWAY__PUBLIC_URL": "https://pictures.example",
    }

    gateway = load(write(tmp_path, ""), environ=environ).settings.gateway

    assert gateway.orchestrators == ("https://127.0.0.1:1",)
    assert gateway.model_aliases == {"a/b": "c/d"}
    assert gateway.public_url == "https://pictures.example"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[gateway]\nprot = 1\n", "gateway.prot: no such setting"),
        ("[gatway]\nport = 1\n", "gatway.*: no such setting"),
        ("[gateway]\nport = 70000\n", "gateway.port.*65535.*70000"),
        ("[gateway]\nport = 'x'\n", "gateway.port.*'x'"),
        ("[worker]\nprecision = 'int8'\n", "worker.precision"),
        ("gateway = 1\n", "gateway"),
        ("not toml", "is not TOML"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, text: str, match: str) -> None:
    """With what came, where from and what was expected."""
    with pytest.raises(ConfigError, match=match):
        load(write(tmp_path, text), environ={})


def test_a_misspelt_variable_is_refused(tmp_path: Path) -> None:
    """Never silently a default."""
    with pytest.raises(ConfigError, match="FOURFOLD_GATEWAY__PROT"):
        load(write(tmp_path, ""), environ={"FOURFOLD_GATEWAY__PROT": "1"})


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("FOURFOLD_GATEWAY_PORT", "did you mean FOURFOLD_GATEWAY__PORT?"),
        ("FOURFOLD_GATEWAY__PROT", "did you mean FOURFOLD_GATEWAY__PORT?"),
        ("FOURFOLD_DATADIR", "did you mean FOURFOLD_DATA_DIR?"),
        ("FOURFOLD_STRICT", "did you mean FOURFOLD_WORKER__STRICT?"),
        ("FOURFOLD_XYZ", "`fourfold config show`, without it, lists all"),
    ],
)
def test_what_was_meant_by_a_misspelt_variable_is_told(tmp_path: Path, wrong: str, meant: str) -> None:
    """As it is written where it stands."""
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, ""), environ={wrong: "1"})

    assert str(caught.value).endswith(meant)


def test_what_was_meant_in_a_file_is_told(tmp_path: Path) -> None:
    """By its dotted name; of several that may be meant, all."""
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "drain_s = 1\n[gateway]\nmaxjobs = 1\n"), environ={})

    assert "did you mean gateway.max_jobs?" in str(caught.value)
    assert "did you mean gateway.drain_s or orchestrator.drain_s or worker.drain_s?" in str(caught.value)


@pytest.mark.parametrize("token", ["12345", "true", "1e5", "[x]", "1979-05-27"])
def test_a_token_is_a_text_whatever_it_looks_like(tmp_path: Path, token: str) -> None:
    """From the environment values are read as TOML, but not where only a text can be meant."""
    environ = {"FOURFOLD_WORKER__AUTH_TOKEN": token, "FOURFOLD_DATA_DIR": "123", "FOURFOLD_GATEWAY__MAX_JOBS": "3"}

    settings = load(write(tmp_path, ""), environ=environ).settings

    assert settings.worker.auth_token is not None and settings.worker.auth_token.get_secret_value() == token
    assert (settings.data_dir, settings.gateway.max_jobs) == (Path("123"), 3)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("GATEWAY__ORCHESTRATORS", "https://127.0.0.1:1", 'expected a list, ["first", "second"], got'),
        ("GATEWAY__MODEL_ALIASES", "a=b", 'expected a table, {"key" = "value"}, got'),
    ],
)
def test_a_list_that_is_none_is_refused_with_its_form(tmp_path: Path, name: str, value: str, words: str) -> None:
    """Nobody at a shell knows what a tuple is."""
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, ""), environ={f"FOURFOLD_{name}": value})

    assert words in str(caught.value) and f"environment FOURFOLD_{name}" in str(caught.value)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Windows' editors write one."""
    file = tmp_path / "fourfold.toml"
    file.write_text("[gateway]\nport = 1234\n", encoding="utf-8-sig")

    assert load(file, environ={}).settings.gateway.port == 1234


def test_a_missing_file_is_refused_when_it_was_named(tmp_path: Path) -> None:
    """A typo in --config must not run the defaults."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load(tmp_path / "nowhere.toml", environ={})


def test_livepeers_variables_count_for_the_worker_alone(tmp_path: Path) -> None:
    """PORT is everybody's variable; only a worker takes it."""
    environ = {"PORT": "7", "AUTH_TOKEN": "secret", "MODEL_ID": "m"}
    file = write(tmp_path, "")

    as_worker = load(file, environ=environ, role="worker").settings.worker
    as_gateway = load(file, environ=environ, role="gateway").settings

    assert (as_worker.port, as_worker.model_id) == (7, "m")
    assert as_worker.auth_token is not None and as_worker.auth_token.get_secret_value() == "secret"
    assert (as_gateway.worker.port, as_gateway.gateway.port) == (8000, 9935)


def test_settings_cross_a_pipe_with_their_secrets_and_print_without(tmp_path: Path) -> None:
    """to_json is for a child's standard input; everything else shows stars."""
    settings = load(write(tmp_path, "[worker]\nauth_token = 'hush'\n"), environ={}).settings

    assert from_json(to_json(settings)) == settings
    assert "hush" not in repr(settings)
    assert "hush" not in settings.model_dump_json()


@pytest.mark.parametrize("role", ["gateway", "orchestrator", "worker"])
def test_an_empty_host_is_refused(role: str) -> None:
    """A variable of a script that was not set: to the system it means every address there is."""
    with pytest.raises(ConfigError, match=f"{role}.host"):
        load(flags={f"{role}.host": ""}, environ={})


def test_a_refused_secret_is_not_repeated(tmp_path: Path) -> None:
    """Error messages end up in logs."""
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, "[worker]\nauth_token = ['hush']\n"), environ={})

    assert "hush" not in str(caught.value)


def test_from_json_refuses_anything_else() -> None:
    """An owner that speaks another version is told so."""
    with pytest.raises(ConfigError):
        from_json("{}x")


def test_settings_cannot_be_changed() -> None:
    """Frozen: handed in once."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().gateway.port = 1  # type: ignore[misc]
