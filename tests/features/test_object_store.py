"""Records in an S3-compatible store: the bytes of a local folder, and errors that say what to do and never a key."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import fsspec
import pytest
from conftest import concordant
from object_store import ObjectStore, object_store

from features import events, shards, source
from features.events import PseudonymKey
from features.source import SourceError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
FILES = ("events.parquet", "quarantine.parquet", "summary.json")


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store("records", "closed") as started:
        yield started


@pytest.fixture
def store(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    """The server's address and keys in the environment, as a secret is mounted."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def export(store: ObjectStore, small_export: Path) -> str:
    """A folder of the bucket with a small export."""
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    for path in small_export.glob("*.ndjson"):
        files.put_file(str(path), f"records/export/{path.name}")
    return "s3://records/export"


def same(one: Path, other: Path) -> None:
    for file in FILES:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


def test_a_source_in_a_bucket_gives_the_bytes_of_a_local_one(
    export: str, small_export: Path, key: PseudonymKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.source.PIECE", 2_000_000)  # the largest file is read in pieces there too
    assert [task[2:] for task in source.tasks(export)] == [task[2:] for task in source.tasks(str(small_export))]
    assert len(source.tasks(export)) > len(source.files(export))
    events.ingest(str(small_export), tmp_path / "local", key, now=NOW)
    events.ingest(export, tmp_path / "bucket", key, now=NOW)
    same(tmp_path / "local", tmp_path / "bucket")
    place = "s3://records/shuffle/run-1"  # and what shards leave for each other
    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file(f"{place.removeprefix('s3://')}/events/0000.parquet", b"of a killed ingest")
    shards.plan(export, place, 2, NOW_US, key)
    assert shards.Place(place).read("events/0000.parquet") == b""
    for share in (0, 1, 1):
        shards.read_share(place, share, key)
    shards.settle(place, key)
    for shard in range(2):
        shards.build(place, shard, key)
    for _ in range(2):  # the second time as after a lost pod
        shards.join(place, tmp_path / "shards")
    shards.clear(place)
    same(tmp_path / "local", tmp_path / "shards")
    assert not fsspec.filesystem("s3", skip_instance_cache=True).exists("records/shuffle")


def test_a_digest_tells_what_a_bucket_holds_and_not_when_it_was_written(export: str, small_export: Path) -> None:
    def now() -> str:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        return source.fingerprint(export)

    files, first = fsspec.filesystem("s3", skip_instance_cache=True), now()
    content = (small_export / "Condition.ndjson").read_bytes()
    files.pipe_file("records/export/Condition.ndjson", content)
    assert now() == first
    files.pipe_file("records/export/Condition.ndjson", content + b"\n")
    assert now() != first


@pytest.mark.parametrize(
    ("url", "changed", "sentence"),
    [
        ("s3://records/export", {"AWS_SECRET_ACCESS_KEY": "ZQWRONGSECRET"}, "the credentials are wrong, or have no right"),
        ("s3://records/export", {"AWS_ACCESS_KEY_ID": "AKIAZQNOBODY"}, "the credentials are wrong, or have no right"),
        ("s3://records/export", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "There are no credentials"),
        ("s3://records/export", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "can't be reached. Check AWS_ENDPOINT_URL"),
        ("s3://no-such-bucket/export", {}, "does not exist. Give a bucket and folder"),
        ("s3://records/no-such-folder", {}, "does not exist. Give a bucket and folder"),
    ],
)
def test_what_is_wrong_is_said_without_a_key(
    store: ObjectStore, url: str, changed: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name, value in changed.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(SourceError) as refused:
        source.files(url)
    assert sentence in str(refused.value) and url in str(refused.value)
    assert not any(value and value in str(refused.value) for name, value in changed.items() if "KEY" in name)


def test_a_mounted_file_of_credentials_is_read(store: ObjectStore, export: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = store.environment
    mounted = tmp_path / "credentials"
    mounted.write_text(
        f"[default]\naws_access_key_id = {told['AWS_ACCESS_KEY_ID']}\naws_secret_access_key = {told['AWS_SECRET_ACCESS_KEY']}\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(mounted))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    assert source.files(export)


def test_a_file_that_may_not_be_read_stops_the_ingest_and_is_not_called_damaged(
    store: ObjectStore, key: PseudonymKey, tmp_path: Path
) -> None:
    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file(
        "records/closed/Patient.ndjson", b'{"resourceType": "Patient", "id": "a"}\n'
    )
    with pytest.raises(SourceError, match="no right to list and read"):
        events.ingest("s3://records/closed", tmp_path / "out", key, now=NOW)
    assert not list((tmp_path / "out").iterdir())


def test_the_command_line_says_it_in_one_sentence(store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ZQWRONGSECRET")
    done = concordant("ingest", "s3://records/export", "--out", str(tmp_path / "out"), cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The object store refuses 's3://records/export'") and done.stderr.count("\n") == 1
    assert "ZQWRONGSECRET" not in done.stdout + done.stderr and "Traceback" not in done.stderr
