"""A Redis or a PostgreSQL of one's own on 127.0.0.1, with a password, for as long as a command or a test runs."""

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from features.errors import ConcordantError
from pipelines.port import free_port

STARTING_S = 30.0
PROGRAMS = {"redis": ("redis-server", "redis-server"), "postgresql": ("postgres", "postgresql")}  # kind: program, Debian's package


class LocalServer:
    """A context manager: the server runs inside it, its data stay in `folder`. `url` is what CONCORDANT_ONLINE_STORE takes."""

    def __init__(self, kind: str, folder: Path, port: int | None = None) -> None:
        if kind not in PROGRAMS:
            raise ConcordantError(f"There is no local server {kind!r}. Give one of: {', '.join(PROGRAMS)}.")
        self.kind, self.folder, self.port = kind, folder.resolve(), port or free_port()
        self._account: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address with the password, which is made once and kept in the folder, readable by its owner only."""
        password = self._password()
        return (
            f"redis://:{password}@127.0.0.1:{self.port}/0"
            if self.kind == "redis"
            else f"postgresql://concordant:{password}@127.0.0.1:{self.port}/postgres"
        )

    def __enter__(self) -> "LocalServer":
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = self._redis() if self.kind == "redis" else self._postgres()
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, **self._account
            )
        try:
            self._await()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown; at SIGTERM it waits for its clients
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def wait(self) -> None:
        """Until the server ends or Ctrl-C. Raises ConcordantError where it ended by itself."""
        assert self._process is not None
        self._process.wait()
        raise ConcordantError(f"The {self.kind} server ended by itself. Its log: {self.folder / 'log.txt'}")

    def _redis(self) -> Sequence[str]:
        settings = self.folder / "redis.conf"  # a file: a password on the command line is seen by everybody
        told = {
            "bind": "127.0.0.1",
            "port": self.port,
            "requirepass": self._password(),
            "dir": self.folder,
            "appendonly": "yes",
            "save": '""',
        }
        settings.touch(mode=0o600)
        settings.write_text("".join(f"{name} {value}\n" for name, value in told.items()), encoding="utf-8")
        return [_program("redis"), str(settings)]

    def _postgres(self) -> Sequence[str]:
        postgres, data = Path(_program("postgresql")), self.folder / "data"
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self._account = {"user": _lesser(), "group": pwd.getpwnam(_lesser()).pw_gid, "extra_groups": []}
        if not data.exists():
            given = self.folder / "password"
            self._password()
            for path in (self.folder, given) if self._account else ():
                shutil.chown(path, self._account["user"], self._account["group"])
            told = ("-U", "concordant", "--auth=scram-sha-256", f"--pwfile={given}", "--encoding=UTF8", "--no-locale", "--no-sync")
            made = subprocess.run(
                [str(postgres.with_name("initdb")), "-D", str(data), *told], cwd=self.folder, capture_output=True, **self._account
            )
            if made.returncode:
                shutil.rmtree(data, ignore_errors=True)
                raise ConcordantError(f"PostgreSQL can't make its data in {self.folder}: {_last(made.stderr)}")
        return [str(postgres), "-D", str(data), "-p", str(self.port), "-h", "127.0.0.1", "-k", ""]

    def _password(self) -> str:
        path = self.folder / "password"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            path.touch(mode=0o600)
            path.write_text(secrets.token_hex(16), encoding="ascii")
        return path.read_text(encoding="ascii").strip()

    def _await(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + STARTING_S
        while self._process.poll() is None and time.monotonic() < deadline:
            if self._answers():
                return
            time.sleep(0.05)
        raise ConcordantError(f"The {self.kind} server did not start: {_last((self.folder / 'log.txt').read_bytes())}")

    def _answers(self) -> bool:
        if self.kind == "postgresql":
            ready = Path(_program("postgresql")).with_name("pg_isready")
            return subprocess.run([str(ready), "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode == 0
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as talk, talk.makefile("rb") as lines:
                talk.sendall(f"AUTH {self._password()}\r\nPING\r\n".encode())
                return (lines.readline(), lines.readline()) == (b"+OK\r\n", b"+PONG\r\n")
        except OSError:
            return False


def _program(kind: str) -> str:
    name, package = PROGRAMS[kind]
    debian = sorted(str(path) for path in Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))  # Debian keeps it off the path
    found = debian[-1] if debian else shutil.which(name)
    if found is None:
        raise ConcordantError(f"{name} is not installed. On Debian or Ubuntu: apt-get install {package}")
    return found


def _lesser() -> str:
    """An account without rights: PostgreSQL's own where there is one."""
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _last(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it says nothing"
