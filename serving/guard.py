"""Everything between the network and an endpoint: exact routes, limits, deadlines, opaque errors. One small ASGI application.

An endpoint is `async (Request) -> Reply`. To mount more behind the guard, hand more `Route`s to `serving.server.serve`: method and path
are matched exactly, so what is not in the table can't be reached. Nothing of a request is ever repeated in an error or a log.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from uuid import uuid4

import orjson

from serving import body as bodies
from serving.admission import Admission
from serving.pool import Overloaded, Pool
from serving.schema import BadRequest

JSON = "application/json"
FHIR = "application/fhir+json"
PROBLEM = "application/problem+json"
REQUEST_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # what a caller may name: nothing that could hold more
_SMALL = 16_384  # a body up to here is parsed where it arrives, a larger one off the event loop
_log = logging.getLogger("concordant.request")

Scope = Mapping[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Refusal(Exception):
    """An answer that is no answer: status, what is wrong in words of ours, a code from the closed list, when to come back."""

    def __init__(self, status: int, detail: str, *, code: str | None = None, retry_after: int | None = None, allow: str = "") -> None:
        super().__init__(detail)
        self.status, self.detail, self.code, self.retry_after, self.allow = status, detail, code, retry_after, allow


class NotFound(Refusal):
    """Nothing is known under that id."""

    def __init__(self, detail: str) -> None:
        super().__init__(404, detail)


class Unavailable(Refusal):
    """No answer can be given now; `code` says why: FEATURE_STORE_DOWN, MODEL_UNAVAILABLE, AUDIT_UNAVAILABLE, OVERLOADED, DEADLINE."""

    def __init__(self, code: str, detail: str, *, status: int = 503, retry_after: int = 1) -> None:
        super().__init__(status, detail, code=code, retry_after=retry_after)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a request may ask of us. Bytes and seconds."""

    body_bytes: int = 1_000_000
    header_bytes: int = 16_384
    body_s: float = 5.0  # to receive the body
    deadline_s: float = 2.0  # to answer
    in_flight: int = 64  # requests that do work, at most; fewer where they would not be answered in time. More are shed at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A request that passed the guard. `body` is the parsed JSON, None where there is none; `headers` have lower-case names."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: Any
    id: str
    peer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What goes back."""

    body: bytes
    status: int = 200
    media: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


Endpoint = Callable[[Request], Awaitable[Reply]]
Told = Callable[[Refusal, str], Reply]  # how a refusal is written: problem details, or an OperationOutcome for those who speak FHIR


def json_reply(value: Any, status: int = 200) -> Reply:
    """A reply of any JSON value."""
    return Reply(body=orjson.dumps(value), status=status)


def problem(refusal: Refusal, request_id: str) -> Reply:
    """RFC 9457 problem details."""
    title = HTTPStatus(refusal.status).phrase
    told: dict[str, Any] = {"type": "about:blank", "title": title, "status": refusal.status, "detail": refusal.detail}
    told |= {"request_id": request_id} | ({"code": refusal.code} if refusal.code else {})
    headers = [("retry-after", str(refusal.retry_after))] if refusal.retry_after is not None else []
    headers += [("allow", refusal.allow)] if refusal.allow else []
    return Reply(body=orjson.dumps(told), status=refusal.status, media=PROBLEM, headers=tuple(headers))


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One method on one exact path. `works`: it computes, so it counts against the limit of requests in flight.

    `accepts` are the content types of its body; a route without any takes no body. `pattern`: a path with a part that varies, matched
    as a whole where no exact path fits. `name` stands in metrics and logs.
    """

    method: str
    path: str
    endpoint: Endpoint
    name: str
    accepts: tuple[str, ...] = ()
    works: bool = False
    told: Told = problem
    pattern: re.Pattern[str] | None = None


@dataclass(kw_only=True)
class State:
    """What the process as a whole is doing."""

    draining: bool = False
    in_flight: int = 0
    shed: int = 0  # refused for want of room since it was last logged
    shed_told: float = 0.0
    observed: list[Callable[[str, int, float], None]] = field(default_factory=list)  # route, status, seconds


class Guard:
    """The ASGI application."""

    def __init__(self, routes: Sequence[Route], *, limits: Limits | None = None, state: State | None = None) -> None:
        self.limits, self.state = limits or Limits(), state or State()
        self.admission = Admission(self.limits.in_flight)
        self._parsing = Pool("parse", threads=1, waiting=8)
        self._table: dict[str, dict[str, Route]] = {}
        self._patterns = [route for route in routes if route.pattern is not None]
        for route in routes:
            if route.pattern is None:
                self._table.setdefault(route.path, {})[route.method] = route

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        if self.admission.full and (wanted := self._table.get(scope["path"], {}).get(scope["method"])) and wanted.works:
            await self._shed(wanted, send, began)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid4().hex
        route: Route | None = None
        told: Told = problem
        try:
            route = self._route(scope)
            told = route.told
            reply = await self._answer(route, scope, headers, receive, request_id)
        except Refusal as refusal:
            reply = told(refusal, request_id)
        except BadRequest as error:
            reply = told(Refusal(400, str(error)), request_id)
        except Overloaded:
            reply = told(_full(), request_id)
        except Exception as error:  # a fault of ours: its text may quote a record, so its kind and place are all that is told
            fault(error, request_id)
            reply = told(Refusal(500, "This is a fault of ours. It was logged under the request id."), request_id)
        await _send(send, reply, request_id, close=self.state.draining)
        seconds = time.perf_counter() - began
        for observe in self.state.observed:
            observe(route.name if route else "none", reply.status, seconds)
        if reply.status >= 500:
            _log.warning("", extra={"request": request_id, "route": route.name if route else None, "status": reply.status})

    async def _shed(self, route: Route, send: Send, began: float) -> None:
        """Refuse before the head is looked at or the body read: what is refused must cost little, or nothing is left for others."""
        request_id = uuid4().hex
        await _send(send, route.told(_full(), request_id), request_id, close=self.state.draining)
        for observe in self.state.observed:
            observe(route.name, 503, time.perf_counter() - began)
        self._told_shed()

    def _told_shed(self) -> None:
        """One line a second, however many were refused."""
        state, now = self.state, time.monotonic()
        state.shed += 1
        if now - state.shed_told >= 1:
            _log.warning("", extra={"status": 503, "shed": state.shed})
            state.shed, state.shed_told = 0, now

    def _route(self, scope: Scope) -> Route:
        path, method = scope["path"], scope["method"]
        methods = self._table.get(path) or {r.method: r for r in self._patterns if r.pattern and r.pattern.fullmatch(path)}
        if not methods:
            raise Refusal(404, "There is nothing at this path.")
        if method not in methods:
            raise Refusal(405, "This path is not served for this method.", allow=", ".join(sorted(methods)))
        return methods[method]

    async def _answer(self, route: Route, scope: Scope, headers: dict[str, str], receive: Receive, request_id: str) -> Reply:
        length = self._checked(route, scope, headers)
        if not route.works:
            return await self._ask(route, scope, headers, await self._body(route, length, receive), request_id)
        body = await self._body(route, length, receive)
        async with self.at_work():  # asked already before the body was read, but it may have come slowly
            return await self._ask(route, scope, headers, body, request_id)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """A place among the requests that compute, and the time that they have. Raises Unavailable: OVERLOADED or DEADLINE."""
        if self.admission.full:
            raise _full()
        self.state.in_flight += 1
        entered, refused = self.admission.enter(), False
        try:
            async with asyncio.timeout(self.limits.deadline_s):
                yield
        except TimeoutError:
            refused = True
            raise Unavailable("DEADLINE", f"No answer within {self.limits.deadline_s:g} s. Ask again.") from None
        except Overloaded:
            refused = True
            raise
        except Unavailable as error:
            refused = error.code == "OVERLOADED"
            raise
        finally:
            self.state.in_flight -= 1
            self.admission.leave(entered, refused=refused)

    async def _ask(self, route: Route, scope: Scope, headers: dict[str, str], body: Any, request_id: str) -> Reply:
        client, query = scope.get("client"), scope["query_string"].decode("latin-1")
        peer = client[0] if client else ""
        given = {"method": scope["method"], "path": scope["path"], "query": query, "headers": headers, "peer": peer}
        return await route.endpoint(Request(**given, body=body, id=request_id))

    def _checked(self, route: Route, scope: Scope, headers: dict[str, str]) -> int | None:
        """Length of the body where it is told. Raises Refusal for what a header alone gives away."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > self.limits.header_bytes:
            raise Refusal(431, f"The header fields are longer than {self.limits.header_bytes:,} bytes.")
        told, coded = headers.get("content-length"), "transfer-encoding" in headers
        if told is not None and (coded or not told.isascii() or not told.isdigit()):
            raise Refusal(400, "The length of the body is told twice or not as a number.")
        if told is not None and int(told[:12]) > self.limits.body_bytes:
            raise Refusal(413, f"The body is longer than {self.limits.body_bytes:,} bytes.")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise Refusal(415, "A coded body is not read: send it plain.")
        if route.accepts and (kind := headers.get("content-type", "")):
            plain = kind.partition(";")[0].strip().lower()
            if plain not in route.accepts:
                raise Refusal(415, f"The content type must be {' or '.join(route.accepts)}.")
            if "charset=" in kind.lower() and kind.lower().partition("charset=")[2].strip(' "') not in ("utf-8", "utf8"):
                raise Refusal(415, "The body must be UTF-8.")
        return int(told) if told is not None else None if coded else 0

    async def _body(self, route: Route, length: int | None, receive: Receive) -> Any:
        if not route.accepts:
            if length != 0:
                raise Refusal(400, "This path takes no body.")
            return None
        raw = await self._received(length, receive)
        return bodies.parse(raw) if len(raw) <= _SMALL else await self._parsing.run(bodies.parse, raw)

    async def _received(self, length: int | None, receive: Receive) -> bytes:
        if length == 0:
            return b""
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "The connection ended before the body did.")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self.limits.body_bytes:
                        raise Refusal(413, f"The body is longer than {self.limits.body_bytes:,} bytes.")
                    if not message.get("more_body"):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            raise Refusal(408, f"The body did not arrive within {self.limits.body_s:g} s.") from None


async def _send(send: Send, reply: Reply, request_id: str, *, close: bool) -> None:
    headers = [
        (b"content-type", reply.media.encode("latin-1")),
        (b"content-length", str(len(reply.body)).encode()),
        (b"x-request-id", request_id.encode()),
        (b"cache-control", b"no-store"),
        (b"x-content-type-options", b"nosniff"),
        *((name.encode("latin-1"), value.encode("latin-1")) for name, value in reply.headers),
    ]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _full() -> Unavailable:
    return Unavailable("OVERLOADED", "Too many requests at once. Ask again.")


def fault(error: Exception, request_id: str) -> None:
    """Log where a fault of ours happened, without its text."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}" if trace is not None else "?"
    _log.error("", extra={"request": request_id, "fault": type(error).__name__, "place": place})
