"""A source of FHIR R4: a folder or URL of NDJSON files or Bundles, in blocks of lines. A file cut off is told, never lost."""

import hashlib
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import fsspec
import orjson

from features import resources, vcf
from features.errors import ConcordantError

Resource = dict[str, Any]
PIECE = 1 << 22  # bytes of a large file that are read as one task: small enough for shares that end together
BLOCK = 1 << 20  # bytes read at once
MOST_LINE = 1 << 27  # bytes; a longer line is told and skipped
_PACKED = (".gz", ".zst")
_LINES = (".ndjson", ".jsonl")


class SourceError(ConcordantError):
    """The source as a whole can't be read. The message names what was looked for; it never quotes a record."""


class Line(NamedTuple):
    """One received resource, or the reason why it can't be read."""

    file: str
    number: int
    resource: Resource | None
    problem: str | None
    raw: bytes


class Task(NamedTuple):
    """A file, or a piece of one, that is read by itself. `name` is the path inside the source."""

    number: int
    path: str
    name: str
    start: int = 0
    end: int | None = None


class Block(NamedTuple):
    """Some lines, how many, the number of the first of them, and why the file ends after them although it should not."""

    first: int
    text: bytes
    size: int  # lines
    problem: str | None = None

    @property
    def lines(self) -> list[bytes]:
        """One by one."""
        return self.text.split(b"\n") if self.size else []


def files(source: str) -> list[str]:
    """Files of a folder or fsspec URL that hold FHIR: NDJSON and JSON Bundles, plain, gzip or zstd; Patients first, then Medications.

    Raises SourceError where there is nothing to read.
    """
    return [task.path for task in _found(source)]


def tasks(source: str) -> list[Task]:
    """What there is to read, in the order in which it counts; a large file in pieces of the same size for everybody."""
    found: list[Task] = []
    for _, path, name, _, _ in _found(source):
        filesystem, place = fsspec.core.url_to_fs(path)
        size = filesystem.size(place) if _can_seek(filesystem) and name.endswith(_LINES) else 0
        for start in range(0, max(size or 0, 1), PIECE):
            found.append(Task(len(found), path, name, start, start + PIECE if size else None))
    return found


def _found(source: str) -> list[Task]:
    try:
        filesystem, root = fsspec.core.url_to_fs(source)
        found = filesystem.find(root) if filesystem.isdir(root) else [root] if filesystem.exists(root) else None
    except Exception as error:  # each store's library has exceptions of its own
        raise SourceError(unopened(source, error)) from None
    if found is None:
        what = "a bucket and folder" if source.startswith("s3://") else "a folder or URL"
        raise SourceError(f"The source {source!r} does not exist. Give {what} that holds FHIR NDJSON files.")
    wanted = sorted(path for path in found if _plain(path).endswith((*_LINES, ".json")) or path.endswith(vcf.SUFFIXES))
    if not wanted:
        raise SourceError(f"The source {source!r} holds no .ndjson, .ndjson.gz, .json or .vcf file; found {len(found)} other files.")
    wanted.sort(key=lambda path: _turn(path.rsplit("/", 1)[-1]))
    inside = root.rstrip("/") + "/" if found != [root] else root.rpartition("/")[0] + "/"
    return [Task(n, filesystem.unstrip_protocol(path), path.removeprefix(inside)) for n, path in enumerate(wanted)]


def unopened(url: str, error: Exception) -> str:
    """Why a folder or URL can't be opened, and what to do; never what the library says, which may quote an address with a key."""
    kind = type(error).__name__
    if url.startswith("s3://"):
        if isinstance(error, ImportError):
            return f"{url!r} needs the package s3fs: pip install 'concordant[s3]'."
        if kind in ("NoCredentialsError", "PartialCredentialsError"):
            return f"There are no credentials for {url!r}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SHARED_CREDENTIALS_FILE."
        if isinstance(error, PermissionError):
            return f"The object store refuses {url!r}: the credentials are wrong, or have no right to list and read it. Check AWS_*."
        if kind in ("EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError", "SSLError", "ProxyConnectionError"):
            return f"The object store of {url!r} can't be reached. Check AWS_ENDPOINT_URL and the network."
    return f"The source {url!r} can't be opened: {kind}. Give a folder or an fsspec URL."


def _can_seek(filesystem: Any) -> bool:
    """Whether a file can be read from its middle: on a disk or in an object store, not of any web server."""
    protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    return not {"http", "https"} & set(protocols)


class _Remote:
    """A file that is not on this machine: what goes wrong on the way is no damage of the file."""

    def __init__(self, raw: Any, path: str) -> None:
        self._raw, self._path = raw, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def read(self, size: int = -1) -> bytes:
        return self._told(self._raw.read, size)

    def readline(self, _most: int = -1) -> bytes:  # a store's file knows no limit
        return self._told(self._raw.readline)

    def _told(self, read: Callable[..., bytes], *size: int) -> bytes:
        try:
            return read(*size)
        except Exception as error:
            raise SourceError(unopened(self._path, error)) from None


@contextmanager
def _opened(path: str, ahead: int | None = None) -> Iterator[Any]:
    """`ahead`: bytes that a store is asked for at once; None: what its library likes."""
    try:
        filesystem, place = fsspec.core.url_to_fs(path)
        file = filesystem.open(place, "rb", block_size=ahead)
    except Exception as error:
        raise SourceError(unopened(path, error)) from None
    with file:
        yield file if fsspec.utils.get_protocol(path) in ("file", "local") else _Remote(file, path)


def _plain(name: str) -> str:
    """The name without the ending of a compression."""
    return next((name[: -len(ending)] for ending in _PACKED if name.endswith(ending)), name)


def _turn(name: str) -> int:
    return 0 if name.startswith("Patient") else 1 if name.split(".")[0].rstrip("0123456789-_") == "Medication" else 2


def fingerprint(source: str) -> str:
    """Digest of what a source holds now: of the bytes of a local folder, of the store's own version marks behind a URL."""
    whole = hashlib.sha256()
    for task in _found(source):
        filesystem, place = fsspec.core.url_to_fs(task.path)
        whole.update(task.name.encode())
        if "file" in filesystem.protocol:
            with Path(place).open("rb") as stream:
                whole.update(hashlib.file_digest(stream, "sha256").digest())
        else:
            whole.update(str(filesystem.info(place).get("ETag") or filesystem.ukey(place)).encode())
    return whole.hexdigest()


def weights(found: list[Task]) -> list[int]:
    """Bytes of each task: how work is dealt out, and how finely what is read is divided."""
    sizes: dict[str, int] = {}
    for task in found:
        if task.path not in sizes:
            filesystem, place = fsspec.core.url_to_fs(task.path)
            sizes[task.path] = filesystem.size(place) or 0
    return [max(0, min(task.end or sizes[task.path], sizes[task.path]) - task.start) for task in found]


def is_first(name: str) -> bool:
    """Whether a file stands before the others: those of Patients and of Medications do."""
    return _turn(name.rsplit("/", 1)[-1]) < 2


def is_whole(name: str) -> bool:
    """Whether a file is one JSON text rather than lines of it."""
    return _plain(name).endswith(".json")


def whole(task: Task) -> bytes | None:
    """All of a JSON file; None where it ends early or is damaged."""
    try:
        with _opened(task.path) as raw:
            return b"".join(_read(raw, task.name))
    except (EOFError, OSError, zlib.error):
        return None


def blocks(task: Task) -> Iterator[Block]:
    """The lines of a task, in order and in bounded memory. A file that is cut off or damaged ends in a Block with a problem."""
    if task.name.endswith(vcf.SUFFIXES):
        yield _genotyped(task)
        return
    number, left = 1, [b""]
    try:
        with _opened(task.path, PIECE if task.end else None) as raw:
            for chunk in _read(raw, task.name, task.start, task.end):
                head, newline, rest = chunk.rpartition(b"\n")
                if newline:
                    text = b"".join((*left, head))
                    lines = text.count(b"\n") + 1
                    yield Block(number, text, lines)
                    number, left = number + lines, [rest]
                else:
                    left.append(chunk)
                if sum(map(len, left)) > MOST_LINE:
                    yield Block(number, b"", 0, "line_too_long")
                    return
    except (EOFError, OSError, zlib.error):  # a compressed stream that ends early or is damaged
        yield Block(number, b"", 0, "file_truncated")
        return
    last = b"".join(left)
    if last:
        yield Block(number, last, 1)


def _genotyped(task: Task) -> Block:
    """The Observations that a VCF is told as. What lies beside it (samples.csv, weights) is read with it."""
    told: list[bytes] = []
    with TemporaryDirectory() as place:
        filesystem, inside = fsspec.core.url_to_fs(task.path)
        path = Path(inside)
        if "file" not in filesystem.protocol:
            beside = (".csv", ".pgs.txt", ".pgs.txt.gz")
            for entry in filesystem.ls(inside.rsplit("/", 1)[0], detail=False):
                if entry == inside or entry.endswith(beside):
                    filesystem.get(entry, str(Path(place) / entry.rsplit("/", 1)[-1]))
            path = Path(place) / path.name
        try:
            told += map(orjson.dumps, vcf.observations(path))
        except vcf.VcfError as error:
            return Block(1, b"\n".join(told), len(told), error.code)
    return Block(1, b"\n".join(told), len(told))


def _read(raw: Any, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
    """Bytes of a file, decompressed; of a piece, the lines that begin in it."""
    if end is not None:
        yield from _piece(raw, start, end)
        return
    if name.endswith(".gz"):
        yield from _unzipped(raw)
    elif name.endswith(".zst"):
        yield from _unpacked(raw)
    else:
        while chunk := raw.read(BLOCK):
            yield chunk


def _unzipped(raw: Any) -> Iterator[bytes]:
    """All members of a gzip file, and what can be read of one that is cut off before EOFError says so."""
    member, begun = zlib.decompressobj(wbits=31), False
    while chunk := raw.read(BLOCK // 64):  # little is lost where damage begins
        while chunk:
            if member.eof:
                member, begun = zlib.decompressobj(wbits=31), False
                chunk = chunk.lstrip(b"\0")  # padding after the last member
                if not chunk:
                    break
            begun = True
            yield member.decompress(chunk, BLOCK)
            chunk = member.unconsumed_tail or member.unused_data
    if not member.eof and (begun or raw.tell() == 0):
        raise EOFError


def _unpacked(raw: Any) -> Iterator[bytes]:
    """A zstd file."""
    import pyarrow as pa

    stream, empty = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"), True
    while chunk := stream.read(BLOCK // 16):
        empty = False
        yield chunk
    if empty:
        raise EOFError


def _piece(raw: Any, start: int, end: int) -> Iterator[bytes]:
    if start:
        raw.seek(start - 1)
        raw.readline(end - start + 1)  # where no line begins in the piece, not its neighbours' bytes too
    while (here := raw.tell()) < end:
        chunk = raw.read(min(BLOCK, end - here))
        if not chunk:
            return
        yield chunk if raw.tell() < end or chunk.endswith(b"\n") else chunk + raw.readline()


def lines(path: str) -> Iterator[Line]:
    """Each received resource of one file, parsed, in order: to be looked at one by one. Never raises for what the file holds."""
    name = path.rsplit("/", 1)[-1]
    task = Task(0, path, name)
    if is_whole(name):
        raw = whole(task)
        yield from [Line(name, 1, None, "file_truncated", b"")] if raw is None else _parts(name, raw)
        return
    for block in blocks(task):
        for number, raw in zip(count(block.first), block.lines, strict=False):
            if raw.strip():
                yield _line(name, number, raw)
        if block.problem:
            yield Line(name, block.first + len(block.lines), None, block.problem, b"")


def _parts(name: str, raw: bytes) -> Iterator[Line]:
    found = resources.gate(raw)
    if not isinstance(found, resources.Bundle):
        yield _line(name, 1, raw)
        return
    number = 0
    for entry in resources.entries(found):
        part = orjson.loads(entry)
        if not isinstance(part, dict) or "resource" in part:  # else a deletion, the response to one, a link
            number += 1
            yield _line(name, number, orjson.dumps(part.get("resource") if isinstance(part, dict) else None))


def _line(name: str, number: int, raw: bytes) -> Line:
    try:
        resource = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return Line(name, number, None, "not_json", raw)
    if not isinstance(resource, dict) or not isinstance(resource.get("resourceType"), str):
        return Line(name, number, None, "not_a_resource", raw)
    return Line(name, number, resource, None, raw)
