"""Settings: ``fourfold.toml``, then ``FOURFOLD_*``, then flags, checked into frozen values.

This is the only module that reads the environment. Unknown keys are errors: a misspelt setting is never silently a
default. ``FOURFOLD_GATEWAY__PORT=8080`` sets ``[gateway] port``; lists and tables in the environment are TOML values
(``FOURFOLD_GATEWAY__ORCHESTRATORS='["https://10.0.0.2:8935"]'``).
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, get_args

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from fourfold.errors import ConfigError

ENV_PREFIX = "FOURFOLD_"
CONFIG_NAME = "fourfold.toml"

PortNumber = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A group of settings: frozen, with no room for unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LimitSettings(Section):
    """What is refused from the header of an upload, before any pixel is decoded. Each role applies its own."""

    upload_bytes: Count = Field(64 * 2**20, description="Largest request body, bytes")
    input_pixels: Count = Field(16_000_000, le=100_000_000, description="Largest image, width x height")
    side_px: Count = Field(16_384, description="Longest side of an image, pixels")
    prompt_chars: Count = Field(2_000, description="Longest prompt, characters")
    steps: Count = Field(150, description="Most denoising steps a client may ask for")
    form_fields: Count = Field(50, description="Most parts of a multipart body")


class GatewaySettings(Section):
    """The role that takes a client's image and returns a client's image."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on")  # "" would be every address
    port: PortNumber = Field(9935, description="Port to listen on; 0 takes a free one")
    public_url: str | None = Field(None, description="Base of result URLs; without it the request's own address")
    orchestrators: tuple[str, ...] = Field((), description="Base URLs of orchestrators, https://host:port")
    default_model: str | None = Field(None, description="Model for requests that name none")
    model_aliases: dict[str, str] = Field({}, description="Requested model_id -> model_id that is run instead")
    pin: Literal["memory", "strict"] = Field(
        "memory", description="A changed orchestrator certificate is fetched again once (memory) or refused (strict)"
    )
    max_price_usd: float | None = Field(None, gt=0, description="Ceiling, USD per input pixel; none: any price")
    usd_per_eth: float = Field(3000.0, gt=0, description="Rate that turns the ceiling into wei")
    job_deadline_s: Seconds = Field(300.0, description="From the upload's end to the answer")
    capacity_wait_s: Seconds = Field(60.0, description="How long a job waits for a busy network before 503")
    max_jobs: Count = Field(64, description="Jobs open at once; more get 429")
    body_timeout_s: Seconds = Field(60.0, description="Longest silence of a client that is uploading")
    drain_s: Seconds = Field(30.0, description="At shutdown, time to finish open jobs")
    result_ttl_s: Seconds = Field(3600.0, description="How long a result stays under its URL")
    result_bytes: Count = Field(10 * 2**30, description="Most bytes of results kept; the oldest leave first")
    result_download_bytes: Count = Field(3 * 2**30, description="Largest result taken from an orchestrator")
    result_hosts: tuple[str, ...] = Field(
        (), description="Other hosts than the orchestrator's own that a result may be fetched from, host[:port]"
    )
    discovery_interval_s: Seconds = Field(10.0, description="Pause between two rounds of asking orchestrators")
    discovery_timeout_s: Seconds = Field(5.0, description="Longest wait for one orchestrator's answer")
    codec_processes: Count = Field(1, description="Processes that check, decode and encode pictures")
    limits: LimitSettings = LimitSettings()


class OrchestratorSettings(Section):
    """The role that sells input pixels."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on")  # "" would be every address
    port: PortNumber = Field(8935, description="Port for gRPC and HTTPS; 0 takes a free one")
    service_addr: str | None = Field(None, description="host:port under which gateways reach this orchestrator")
    models: Path | None = Field(None, description="aiModels.json: what is sold, for how much, by which worker")
    price_usd: float = Field(1.9073484e-08, ge=0, description="USD per input pixel where an entry names no price")
    usd_per_eth: float = Field(3000.0, gt=0, description="Rate that turns USD prices into wei")
    worker_timeout_s: Seconds = Field(300.0, description="Longest time a worker may take for one job")
    worker_check_s: Seconds = Field(2.0, description="Pause between two health checks of a worker")
    result_ttl_s: Seconds = Field(600.0, description="How long a result stays under its URL")
    result_bytes: Count = Field(10 * 2**30, description="Most bytes of results kept")
    token_ttl_s: Seconds = Field(1800.0, description="Validity of an auth token")
    body_timeout_s: Seconds = Field(60.0, description="Longest silence of a gateway that is uploading")
    drain_s: Seconds = Field(30.0, description="At shutdown, time to finish open jobs")
    limits: LimitSettings = LimitSettings()


class NetworkSettings(Section):
    """A network of the operator's own: a .safetensors file that spandrel knows."""

    path: Path = Field(description="The file")
    sha256: str = Field(pattern=r"^[0-9a-fA-F]{64}$", description="Of its content; anything else is refused")
    licence: str = Field("unknown", description="Of its weights, as clients are told it")
    margin_px: int | None = Field(None, ge=0, le=1024, description="Context of a tile, input pixels; none: 96")


class WorkerSettings(Section):
    """The role that holds models. Also honours AUTH_TOKEN, PIPELINE, MODEL_ID, HOST and PORT, as Livepeer's does."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on")  # "" would be every address
    port: PortNumber = Field(8000, description="Port to listen on; 0 takes a free one")
    pipeline: str = Field("upscale", description="The task; only upscale exists")
    model_id: str | None = Field(None, description="The one model to serve; none: every model of `models`")
    models: tuple[str, ...] = Field((), description="Models to offer; empty: all that this installation can load")
    warm: tuple[str, ...] | None = Field(None, description="Models loaded at start and kept; none: the first offered")
    model_paths: dict[str, Path] = Field({}, description="model_id -> folder with its files; else the hub's cache")
    networks: dict[str, NetworkSettings] = Field(
        {},
        description="model_id -> a network of your own: `{path, sha256, licence, margin_px}`, the last two optional; "
        "path: a .safetensors file that spandrel knows",
    )
    auth_token: SecretStr | None = Field(None, description="Bearer token that callers must send")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="cpu, cuda:0; auto: the first GPU that torch sees, if any",
    )
    threads: int = Field(0, ge=0, description="Threads of the engine; 0: one for each core")
    precision: Literal["auto", "float32"] = Field(
        "auto", description="auto: bf16 where the CPU has it, float16 on a GPU"
    )
    capacity: Count = Field(1, description="Jobs that the device runs at once")
    strict: bool = Field(
        False, description="On a GPU, too, a picture's bytes never depend on the jobs beside it, at some speed"
    )
    compile_models: tuple[str, ...] | None = Field(
        None, description="Models whose kernels are compiled as they run; none: all on a GPU, else none"
    )
    queue: int = Field(4, ge=0, description="Further jobs that wait; beyond that the worker is busy")
    memory_bytes: int | None = Field(None, ge=2**28, description="Budget of the device's process; none: half the RAM")
    nsfw_threshold: float = Field(
        0.8,
        ge=0,
        le=1,
        description="Score from which a picture is flagged; the stock checker has thresholds of its own",
    )
    safety_checker: Path | None = Field(
        None,
        description="Folder of Stable Diffusion's safety checker; none: the hub's cache, and without it open_nsfw",
    )
    job_timeout_s: Seconds = Field(300.0, description="Longest time for one job, its wait included")
    load_timeout_s: Seconds = Field(120.0, description="Longest time to load a model")
    body_timeout_s: Seconds = Field(60.0, description="Longest silence of a caller that is uploading")
    drain_s: Seconds = Field(30.0, description="At shutdown, time to finish running jobs")
    codec_processes: Count = Field(1, description="Processes that decode and encode pictures")
    limits: LimitSettings = LimitSettings()


class LogSettings(Section):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level written")
    format: Literal["console", "json"] = Field("console", description="For people, or one JSON object a line")


class Settings(Section):
    """All settings of one process."""

    data_dir: Path = Field(
        Path(platformdirs.user_data_dir("fourfold", appauthor=False)), description="Where state and results are kept"
    )
    gateway: GatewaySettings = GatewaySettings()
    orchestrator: OrchestratorSettings = OrchestratorSettings()
    worker: WorkerSettings = WorkerSettings()
    log: LogSettings = LogSettings()


@dataclass(frozen=True, slots=True)
class Loaded:
    """Checked settings and where each of them came from."""

    settings: Settings
    origins: Mapping[str, str]  #: dotted key -> "file PATH" | "environment NAME" | "flag"; absent: the default


#: Variables of Livepeer's runner containers and the worker setting each of them is.
RUNNER_VARIABLES: Mapping[str, str] = {
    "AUTH_TOKEN": "worker.auth_token",
    "PIPELINE": "worker.pipeline",
    "MODEL_ID": "worker.model_id",
    "HOST": "worker.host",
    "PORT": "worker.port",
}


def load(
    path: Path | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    role: str | None = None,
) -> Loaded:
    """Read the settings of one process.

    Args: *path*, the file that ``--config`` names; without it ``./fourfold.toml``, then the user's own. *flags*,
        dotted key -> value; None values are left out. *environ*, the environment, for tests. *role*: the variables
        of Livepeer's runners count only where it is "worker".

    Raises: ConfigError if the file is missing or no TOML, a key is unknown or a value is refused.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    file = _find_file(path)
    if file is not None:
        for key, value in _flatten(_read_toml(file)):
            _put(values, key, value)
            origins[key] = f"file {file}"
    if role == "worker":
        for name, key in RUNNER_VARIABLES.items():
            if environ.get(name):
                _put(values, key, environ[name])
                origins[key] = f"environment {name}"
    for name, text in sorted(environ.items()):
        if name.startswith(ENV_PREFIX):
            key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
            _put(values, key, _from_text(text, is_text=_is_text(key)))
            origins[key] = f"environment {name}"
    for key, value in (flags or {}).items():
        if value is not None:
            _put(values, key, value)
            origins[key] = "flag"
    return Loaded(_check(Settings, values, origins), origins)


def from_json(text: str) -> Settings:
    """Rebuild what :func:`to_json` wrote. Raises: ConfigError if it is not that."""
    try:
        return Settings.model_validate_json(text)
    except ValidationError as exc:
        raise ConfigError(f"expected settings as JSON: {exc.error_count()} errors, first: {exc.errors()[0]}") from exc


def to_json(settings: Settings) -> str:
    """Return *settings* with their secrets, for a child's standard input and nothing else."""

    def reveal(value: object) -> object:
        if isinstance(value, Mapping):
            return {k: reveal(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [reveal(v) for v in value]
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        return str(value) if isinstance(value, Path) else value

    import json

    return json.dumps(reveal(settings.model_dump()))


def _find_file(path: Path | None) -> Path | None:
    """Return the file to read: the named one, else the first that exists."""
    if path is not None:
        return path
    candidates = (Path(CONFIG_NAME), Path(platformdirs.user_config_dir("fourfold", appauthor=False)) / CONFIG_NAME)
    return next((c for c in candidates if c.is_file()), None)


def _read_toml(file: Path) -> dict[str, Any]:
    """Parse *file*."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))  # Windows' editors begin files with a mark
    except OSError as exc:
        raise ConfigError(f"cannot read the settings file {file}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{file} is not TOML: {exc}") from exc


def _from_text(text: str, *, is_text: bool) -> Any:
    """Return a variable's value: TOML where it is a list, a table, a number or a boolean, else the text itself.

    Args: *is_text*, the setting is a text: one of digits alone, as a token may be, stays it.
    """
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text
    return text if is_text and not isinstance(value, str) else value


def _is_text(dotted: str) -> bool:
    """Whether the setting *dotted* is a text, a path or a secret, or none."""
    *sections, key = dotted.split(".")
    model: Any = Settings
    for section in sections:
        field = model.model_fields.get(section)
        if field is None or not _is_section(field.annotation):
            return False
        model = field.annotation
    field = model.model_fields.get(key)
    if field is None:
        return False
    is_choice = isinstance(field.annotation, UnionType)
    kinds = set(get_args(field.annotation)) - {type(None)} if is_choice else {field.annotation}
    return kinds <= {str, Path, SecretStr}


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _flatten(table: Mapping[str, Any], prefix: str = "", model: type[BaseModel] = Settings) -> list[tuple[str, Any]]:
    """Return the table's leaves by dotted key; a setting that is itself a table (model_aliases) is one leaf."""
    leaves: list[tuple[str, Any]] = []
    for key, value in table.items():
        field = model.model_fields.get(key)
        annotation: Any = field.annotation if field else None
        if isinstance(value, dict) and _is_section(annotation):
            leaves += _flatten(value, f"{prefix}{key}.", annotation)
        else:
            leaves.append((prefix + key, value))
    return leaves


def _put(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set *dotted* in nested dictionaries."""
    *sections, key = dotted.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{section!r} is a single setting; {dotted!r} treats it as a group")
    values[key] = value


_Model = TypeVar("_Model", bound=BaseModel)

#: What is said in place of pydantic's word for a type of Python's.
_FORM_TO_EXPECTED: Final[Mapping[str, str]] = {
    "tuple_type": 'expected a list, ["first", "second"]',
    "dict_type": 'expected a table, {"key" = "value"}',
}


def _check(model: type[_Model], values: Mapping[str, Any], origins: Mapping[str, str]) -> _Model:
    """Validate *values*; name every wrong key, what came, where from and what was expected."""
    try:
        return model.model_validate(values)
    except ValidationError as exc:
        lines = []
        for err in exc.errors():
            key = ".".join(str(part) for part in err["loc"])
            origin = next((o for k, o in origins.items() if key == k or key.startswith(k + ".")), "the settings")
            if err["type"] == "extra_forbidden":
                lines.append(f"{key}: no such setting (in {origin}); {_nearest(key, origin)}")
            else:
                came = "" if "token" in key else f", got {err['input']!r}"
                expected = _FORM_TO_EXPECTED.get(err["type"], err["msg"])
                lines.append(f"{key}: {expected}{came} (in {origin})")
        raise ConfigError("\n".join(lines)) from exc


def _nearest(key: str, origin: str) -> str:
    """Return which settings may have been meant by *key*, written as at *origin*, else where all of them stand."""
    known = {dotted.replace(".", "_"): dotted for dotted in _keys(Settings)}
    found = difflib.get_close_matches(key.replace(".", "_"), known, n=1, cutoff=0.8)
    meant = [known[name] for name in found] or [dotted for dotted in known.values() if dotted.endswith(f".{key}")]
    if not meant:
        return "`fourfold config show`, without it, lists all"
    if origin.startswith("environment"):
        meant = [f"{ENV_PREFIX}{dotted.replace('.', '__').upper()}" for dotted in meant]
    return f"did you mean {' or '.join(meant)}?"


def _keys(model: Any, prefix: str = "") -> list[str]:
    """Return the dotted keys of all settings and groups of them."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys += [prefix + name, *(_keys(field.annotation, f"{prefix}{name}.") if _is_section(field.annotation) else [])]
    return keys
