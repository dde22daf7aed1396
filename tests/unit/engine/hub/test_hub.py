"""Models from a hub: real downloads by huggingface_hub from a hub on loopback."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("huggingface_hub", reason="needs the [diffusion] extra")
pytest.importorskip("diffusers", reason="needs the [diffusion] extra")

import huggingface_hub
from huggingface_hub import constants, errors, file_download
from huggingface_hub.utils import close_session

from fourfold.engine import hub, registry
from fourfold.engine.hub_pins import Condition, condition, pins, read_pin, repository_folder
from fourfold.errors import (
    ConfigError,
    InvalidParameterError,
    ModelUnavailableError,
    NotFoundError,
    StorageFullError,
    UnreachableError,
)
from fourfold.processes.lock import FolderLock
from fourfold.testing.hub import Hub, Repository, serving_hub
from fourfold.testing.sd_x4 import write_pipe

MODEL = "stabilityai/stable-diffusion-x4-upscaler"
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"
FORBIDDEN = {
    "x4-upscaler-ema.ckpt": b"\x80pickle",
    "x4-upscaler-ema.safetensors": b"the same weights once more",
    "unet/diffusion_pytorch_model.bin": b"\x80pickle",
    "low_res_scheduler/extra.json": b"{}",
    "README.md": b"words",
    "LICENSE.md": b"terms",
}

Online = Callable[[Hub], None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipe(tmp_path_factory.mktemp("tiny"), half=True)


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Online]:
    """Have the library ask a hub of ours, with a cache of its own."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def join(served: Hub) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        address = f"{served.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")

    yield join
    close_session()


@pytest.fixture
def served(tiny: Path, online: Online) -> Iterator[Hub]:
    """A hub with the model under its real id, beside what the real repository has too."""
    with serving_hub(**{MODEL.replace("/", "__"): Repository(tiny, names=FORBIDDEN)}) as served:
        online(served)
        yield served


def repository(served: Hub) -> Repository:
    return served.repositories[MODEL]


def test_a_pull_fetches_what_is_needed_and_pins_it(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 16-bit variant of each part and no pickle; afterwards the model is found offline, by its commit."""
    listing = hub.look_up(MODEL)
    pin = hub.pull(listing)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    names = {path.relative_to(pin.folder).as_posix() for path in pin.folder.rglob("*") if path.is_file()}
    assert {f"{part}.fp16.safetensors" for part in ("unet/diffusion_pytorch_model", "text_encoder/model")} < names
    assert {name for name in names if name in FORBIDDEN or name == UNET.replace(".fp16", "")} == {"LICENSE.md"}
    assert names == {file.name for file in pin.files}
    assert (listing.licence, pin.commit, pin.revision) == ("openrail++", "0" * 40, "main")
    assert read_pin(MODEL) == pin and list(pins()) == [pin]
    assert registry.why_not_loadable(MODEL) is None


def test_large_files_come_without_the_token(served: Hub) -> None:
    """They lie on another host, which must not see it."""
    hub.pull(hub.look_up(MODEL))

    seen = {path.split("/")[1]: "authorization" in headers for method, path, headers in served.asked if method == "GET"}
    assert seen["store"] is False
    assert seen["api"] is True


def test_the_library_itself_downloads_from_the_test_hub(served: Hub, tmp_path: Path) -> None:
    """It speaks the hub's API, trees included, and not just what our code asks."""
    folder = Path(huggingface_hub.snapshot_download(MODEL, cache_dir=tmp_path / "other", allow_patterns=["unet/*"]))

    assert (folder / UNET).read_bytes() == repository(served).files()[UNET]


def test_an_interrupted_pull_goes_on_where_it_stopped(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub drops the connection within a file and then is away; the next pull asks for the rest only."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)  # what is in hand is lost; else up to 10 MiB
    repository(served).cut[UNET] = 1000
    with pytest.raises(UnreachableError, match="run the command again, it goes on from there"):
        hub.pull(hub.look_up(MODEL))
    assert read_pin(MODEL) is None
    assert registry.why_not_loadable(MODEL) is not None
    before = len(served.asked)
    repository(served).cut.clear()
    pin = hub.pull(hub.look_up(MODEL))

    assert served.ranges()[-1] == "bytes=1000-"
    assert all(condition(pin, file) is Condition.GOOD for file in pin.files)
    again = [path for method, path, _ in served.asked[before:] if method == "GET" and path.endswith("model_index.json")]
    assert again == []


def test_a_damaged_half_is_fetched_anew(served: Hub) -> None:
    """What a dying process left may be wrong."""
    listing = hub.look_up(MODEL)
    file = next(file for file in listing.files if file.name == UNET)
    blobs = repository_folder(MODEL) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{file.sha256}.incomplete").write_bytes(b"x" * 500)
    pin = hub.pull(listing)

    assert all(condition(pin, file) is Condition.GOOD for file in pin.files)


@pytest.mark.parametrize("harm", ["flip", "shorten", "delete"])
def test_verify_finds_a_damaged_file_and_pull_mends_it(served: Hub, harm: str) -> None:
    """By its content, of the right size too; only that file is fetched again."""
    pin = hub.pull(hub.look_up(MODEL))
    blob = (pin.folder / UNET).resolve()
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.chmod(0o600)
    if harm == "delete":
        blob.unlink()
    else:
        blob.write_bytes(content if harm == "flip" else content[:-1])
    bad = {file.name: condition(pin, file) for file in pin.files if condition(pin, file) is not Condition.GOOD}
    before = len(served.asked)
    mended = hub.pull(hub.look_up(MODEL))

    assert bad == {UNET: Condition.MISSING if harm == "delete" else Condition.DAMAGED}
    assert mended == pin and all(condition(pin, file) is Condition.GOOD for file in pin.files)
    assert len([path for method, path, _ in served.asked[before:] if method == "GET" and "/store/" in path]) == 1


def test_content_that_is_not_the_listed_one_never_counts(served: Hub) -> None:
    """The hub sends other bytes than it lists: nothing is pinned, and nothing wrong stays."""
    repository(served).damaged[UNET] = 1
    with pytest.raises(ModelUnavailableError, match="came with other content than the hub lists"):
        hub.pull(hub.look_up(MODEL))
    assert read_pin(MODEL) is None
    pin = hub.pull(hub.look_up(MODEL))

    assert all(condition(pin, file) is Condition.GOOD for file in pin.files)


def test_a_pinned_model_stays_at_its_commit_until_another_revision_is_named(served: Hub) -> None:
    """Mending is no update."""
    first = hub.pull(hub.look_up(MODEL))
    repository(served).commit = "1" * 40
    with pytest.raises(ModelUnavailableError, match="no revision"):
        hub.look_up(MODEL)  # the test hub has but one commit, and the pinned one is asked for
    moved = hub.pull(hub.look_up(MODEL, revision="main"))

    assert (first.commit, moved.commit) == ("0" * 40, "1" * 40)
    assert read_pin(MODEL) == moved


def test_what_is_removed_is_gone(served: Hub) -> None:
    """Every revision, what is unfinished too; others stay."""
    pin = hub.pull(hub.look_up(MODEL))
    (repository_folder(MODEL) / "blobs" / "x.incomplete").write_bytes(b"half")
    freed = hub.remove(MODEL)

    assert freed >= pin.size
    assert not repository_folder(MODEL).exists()
    assert registry.why_not_loadable(MODEL) is not None
    with pytest.raises(NotFoundError, match="is not in the hub's cache"):
        hub.remove(MODEL)


def test_a_full_disk_is_told_before_anything_is_fetched(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=2**26))
    listing = hub.look_up(MODEL)
    before = len(served.asked)
    with pytest.raises(StorageFullError, match=r"needs .* GB more, .* make room"):
        hub.pull(listing)

    assert len(served.asked) == before


def test_what_an_earlier_try_left_needs_no_room_again(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a server that sends the whole file, whatever part was asked for, a trouble."""
    listing = hub.look_up(MODEL)
    file = next(file for file in listing.files if file.name == UNET)
    blobs = repository_folder(MODEL) / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{file.sha256}.incomplete").write_bytes(repository(served).files()[UNET][:-1])
    usage = shutil.disk_usage(".")
    room = listing.size - file.size + 2**26 + 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=room))
    repository(served).ignores_ranges = True
    pin = hub.pull(listing)

    assert served.ranges() == [f"bytes={file.size - 1}-"]
    assert all(condition(pin, file) is Condition.GOOD for file in pin.files)


def test_a_disk_that_fills_up_meanwhile_is_told(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", fill)
    with pytest.raises(StorageFullError, match="no room is left in .*; make some, and run the same command"):
        hub.pull(hub.look_up(MODEL))


def test_damaged_content_whose_name_is_gone_is_not_taken_for_the_file(served: Hub) -> None:
    """It goes by its hash, and may be linked to by another revision."""
    pin = hub.pull(hub.look_up(MODEL))
    link = pin.folder / UNET
    blob = link.resolve()
    blob.chmod(0o600)
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    link.unlink()
    mended = hub.pull(hub.look_up(MODEL))

    assert all(condition(mended, file) is Condition.GOOD for file in mended.files)


def test_two_pulls_of_one_model_do_not_mix(served: Hub) -> None:
    listing = hub.look_up(MODEL)
    busy = "in use by process .* pulls or removes the same model; wait"
    with FolderLock(repository_folder(MODEL)), pytest.raises(ConfigError, match=busy):
        hub.pull(listing)


@pytest.mark.parametrize("model_id", ["../../etc", "a/../b", "a/b/c", "", "a b/c", "x" * 200, "a--b/c", "a/b\0", "/a"])
def test_an_id_that_is_none_is_no_path_into_the_cache(served: Hub, model_id: str) -> None:
    """Whatever is done with it; no hub is asked."""
    for use in (hub.look_up, hub.remove, read_pin):
        with pytest.raises(InvalidParameterError, match="expected a model's id"):
            use(model_id)

    assert served.asked == []


@pytest.mark.parametrize(
    ("how", "error", "text"),
    [
        ({"refusal": HTTPStatus.UNAUTHORIZED}, ModelUnavailableError, r"refuses .* \(401\): log in .* HF_TOKEN"),
        ({"refusal": HTTPStatus.FORBIDDEN}, ModelUnavailableError, r"refuses .* \(403\): log in"),
        ({"refusal": HTTPStatus.TOO_MANY_REQUESTS}, UnreachableError, "answered 429 .* run the command again"),
        ({"refusal": HTTPStatus.BAD_GATEWAY}, UnreachableError, "answered 502 .* run the command again"),
        ({"page": b"<html>log in</html>"}, UnreachableError, "something else than a hub does"),
        ({"page": b"[]"}, UnreachableError, "something else than a hub does"),
        ({"commit": "../../../../x"}, UnreachableError, "names no commit of"),
        ({"etag": "../../../evil"}, UnreachableError, "names the content of .* expected a hash"),
        (
            {"short": {UNET: 700}},
            UnreachableError,
            r"came with another size than the \d+ bytes .* run the command again",
        ),
    ],
)
def test_a_hub_that_answers_wrongly_is_told_and_trusted_with_nothing(
    served: Hub, tmp_path: Path, how: dict[str, Any], error: type[Exception], text: str
) -> None:
    """What it says becomes no path; the next pull, of a hub that is well, succeeds."""
    ill = repository(served)
    served.repositories[MODEL] = replace(ill, **how)
    with pytest.raises(error, match=text):
        hub.pull(hub.look_up(MODEL))
    assert list(pins()) == []
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}

    served.repositories[MODEL] = ill
    pin = hub.pull(hub.look_up(MODEL))
    assert all(condition(pin, file) is Condition.GOOD for file in pin.files)


@pytest.mark.parametrize("endpoint", ["hub", "http://[::1", "ftp://hub"])
def test_an_endpoint_that_is_no_url_is_told(served: Hub, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(ConfigError, match="HF_ENDPOINT must be a hub's URL"):
        hub.look_up(MODEL)


def test_a_cache_that_cannot_be_written_is_told(served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match="cannot use the hub's cache"):
        hub.pull(hub.look_up(MODEL))


def gone(repository: Repository) -> None:
    repository.gone.add(UNET)


def gated(repository: Repository) -> None:
    repository.gated = True


@pytest.mark.parametrize(
    ("model_id", "revision", "change", "error", "text"),
    [
        ("nobody/nothing", None, None, ModelUnavailableError, "has no model nobody/nothing, or it is private"),
        (MODEL, "v9", None, ModelUnavailableError, "has no revision 'v9'"),
        (MODEL, None, gone, ModelUnavailableError, "is listed by .* and not there"),
        (MODEL, None, gated, ModelUnavailableError, "is gated: accept its terms at .* hf auth login"),
    ],
)
def test_what_the_hub_refuses_is_told_in_our_words(
    served: Hub, model_id: str, revision: str | None, change: Any, error: type[Exception], text: str
) -> None:
    """What came, and what to do."""
    if change:
        change(repository(served))
    with pytest.raises(error, match=text):
        hub.pull(hub.look_up(model_id, revision=revision))
    assert list(pins()) == []


def test_no_hub_and_no_network_are_told(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline on purpose, and a closed port."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnreachableError, match="HF_HUB_OFFLINE is set"):
        hub.look_up(MODEL)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="does not answer"):
        hub.look_up(MODEL)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ModelUnavailableError, match=r"pip install 'fourfold\[diffusion\]'"):
        hub.look_up(MODEL)


@pytest.mark.parametrize(
    ("files", "text"),
    [
        ({"config.json": b"{}"}, "is no model that runs here"),
        ({"model_index.json": b"{}"}, "lacks unet/config.json"),
    ],
)
def test_other_repositories_are_refused_before_they_are_fetched(
    online: Online, tmp_path: Path, files: dict[str, bytes], text: str
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with serving_hub(a__b=Repository(folder, names=files)) as served:
        online(served)
        with pytest.raises(ModelUnavailableError, match=text):
            hub.look_up("a/b")


def test_a_pipeline_of_another_kind_stops_after_its_index(online: Online, tiny: Path) -> None:
    """The one small file that says what it is."""
    index = json.dumps({"_class_name": "StableDiffusionPipeline"}).encode()
    with serving_hub(a__b=Repository(tiny, names={"model_index.json": index})) as served:
        online(served)
        with pytest.raises(ModelUnavailableError, match="is a StableDiffusionPipeline, expected a StableDiffusionUp"):
            hub.pull(hub.look_up("a/b"))
        assert [path for _, path, _ in served.asked if "/store/" in path] == []


def test_a_damaged_pin_is_told_and_listed_nowhere(served: Hub) -> None:
    pin = hub.pull(hub.look_up(MODEL))
    (repository_folder(MODEL) / "fourfold.json").write_text("{}")

    assert list(pins()) == []
    assert "cannot be read" in (registry.why_not_loadable(MODEL) or "")
    assert pin.folder.is_dir()


def test_the_librarys_errors_are_known() -> None:
    """A new one must be thought about: `_translated` tells those that a pull can meet."""
    ours = {"OfflineModeIsEnabled", "HFValidationError", "GatedRepoError", "RepositoryNotFoundError", "HfHubHTTPError"}
    ours |= {"RevisionNotFoundError", "EntryNotFoundError"}
    raised = {
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.HfHubHTTPError | errors.EntryNotFoundError)
    }
    by_parent = {"BadRequestError", "BucketBatchError", "BucketNotFoundError", "DisabledRepoError", "JobNotFoundError"}
    by_parent |= {"LocalEntryNotFoundError", "RemoteEntryNotFoundError", "IncompleteSnapshotError"}

    assert raised - ours - by_parent == set()
    assert all(hasattr(errors, name) for name in ours | {"HTTPError"})
    assert os.environ["HF_HUB_OFFLINE"] == "1"
