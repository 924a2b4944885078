"""Ingest divided among processes or machines: the same bytes as `events.ingest`, whatever the number of shards.

`plan` deals out the files and reads the Medications; `read_share` turns a share of the files into columns, divided by patient; `settle`
looks across all of them (versions, repeats, Medications elsewhere, the account); `build` makes the events of some groups of patients;
`join` writes them one after the other; `clear` removes what lay between. Between these functions everything lies at a place that all of
them reach: a folder or a URL.
"""

import io
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from features import engines, source
from features.account import Account, Refusal
from features.assembly import Assembly
from features.collector import Collector
from features.errors import ConcordantError
from features.events import Dates, cleared, finer, offsets, read_tasks, write_account, writer
from features.events import ingest as alone
from features.footer import Joined
from features.medications import Table, firsts, merged, misled
from features.parts import Part, Place, facts, load, load_settled, of_group, save, save_settled
from features.pseudonym import PseudonymKey
from features.source import Task
from features.validation import Which, validate


def fingerprinted(origin: str, key: PseudonymKey) -> dict[str, Any]:
    """What the events of a source depend on, besides our code."""
    return {"source": source.fingerprint(origin), "key": key.number("fingerprint of this key")}


def sentence(told: dict[str, Any]) -> str:
    """A summary in one line for people."""
    return "{received:,} resources, {quarantined:,} in quarantine, {events:,} events of {patients:,} patients".format(**told)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Who reads what. `now_us` is the same for all: a fact after it is refused."""

    origin: str
    now_us: int
    groups: int
    tasks: list[Task]
    shares: list[list[int]]  # numbers of tasks, ascending
    medications: dict[str, str | None]  # of the files that stand before the others
    largest_first: list[int]  # numbers of tasks


def plan(origin: str, place: str, shards: int, now_us: int, key: PseudonymKey) -> Plan:
    """Deal the files of a source out by size, the largest first to whoever has least; leaves the plan at the place, and nothing else.

    A place keeps its name when a killed ingest is tried again: what that left may be of other records.
    Raises SourceError where the source can't be read at all.
    """
    tasks = source.tasks(origin)
    weights = source.weights(tasks)
    largest_first = sorted(range(len(tasks)), key=lambda n: (-weights[n], n))
    loads, shares = [0] * shards, [list[int]() for _ in range(shards)]
    for number in largest_first:
        least = loads.index(min(loads))
        loads[least] += weights[number] + 1
        shares[least].append(number)
    early = [task for task in tasks if source.is_first(task.name)]
    found = Plan(
        origin=origin,
        now_us=now_us,
        groups=finer(sum(weights)),
        tasks=tasks,
        shares=[sorted(share) for share in shares],
        medications=_medications(early, key, now_us),
        largest_first=largest_first,
    )
    there = Place(place)
    there.remove()
    there.write("plan.json", msgspec.json.encode(found))
    return found


def _medications(tasks: list[Task], key: PseudonymKey, now_us: int) -> dict[str, str | None]:
    """The drug of each Medication in the files that a single reader would have read before the others."""
    collector = Collector(key, now_us)
    read_tasks(collector, tasks, holding=b'"Medication"')
    return firsts(collector.collected.medications)


def planned(place: Place) -> Plan:
    """The plan that lies at a place."""
    return msgspec.json.decode(place.read("plan.json"), type=Plan)


def read_share(place: str, share: int, key: PseudonymKey, in_turn: bool = False) -> int:
    """Read one share of the files and leave what they state, divided by patient; returns the number of resources.

    `in_turn`: not the share that was dealt out, but whatever nobody has begun to read yet, so that all end together. That can't be done
    again where one fails, and only processes of one machine can.
    """
    there = Place(place)
    told = planned(there)
    if there.local is not None:
        there.local.mkdir(parents=True, exist_ok=True)
    numbers = there.in_turn("task", told.largest_first) if in_turn else told.shares[share]
    return _read(there, told, f"part-{share:04d}", numbers, key)


def _read(there: Place, told: Plan, name: str, numbers: Iterable[int], key: PseudonymKey, table: Table | None = None) -> int:
    """Read some tasks into a part of that name, in place of what it held; returns the number of resources."""
    with tempfile.TemporaryDirectory(prefix=".share", dir=there.local) as folder:
        spool = Path(folder) / "columns"
        spool.mkdir()
        collector = Collector(key, told.now_us, spool, told.medications, told.groups, table)
        read_tasks(collector, (told.tasks[number] for number in numbers))
        collected = collector.finish()
        save(collected, there, name, key)
    return sum(collected.account.received.values())


def _parts(there: Place, told: Plan, names: list[str], key: PseudonymKey) -> list[Part]:
    """What all shares left; read again is a share whose orders took another file's Medication although their own has it."""
    parts = [load(there, name, key) for name in names]
    table = merged(part.medications for part in parts) if any(part.leaned for part in parts) else {}
    for n, part in enumerate(parts):
        if misled(part.leaned, table):
            _read(there, told, names[n], sorted(part.tasks), key, table)
            parts[n] = load(there, names[n], key)
    return parts


def settle(place: str, key: PseudonymKey, dates: Dates = "kept", check: Which | None = None) -> dict[str, Any]:
    """Look across all shares; leaves what the groups need and the account. Returns the account's numbers, as yet without events."""
    there = Place(place)
    told = planned(there)
    names = [f"part-{share:04d}" for share in range(len(told.shares))]
    with tempfile.TemporaryDirectory(prefix=".again", dir=there.local) as folder:
        spool = Path(folder) / "columns"
        spool.mkdir()
        again = Collector(key, told.now_us, spool, {}, told.groups)
        assembly = Assembly(_parts(there, told, names, key), again)
        save_settled(assembly, there, [*names, "part-again"])
        save(again.collected, there, "part-again", key)
    account = assembly.account
    received = [(file, kind, count) for (file, kind), count in account.received.items()]
    validated = validate(told.origin, check, account) if check else None
    whole = {"received": received, "quarantine": account.quarantine, "patients": account.patients, "dates": dates, "validated": validated}
    there.write("account.json", msgspec.json.encode(whole))
    return account.summary()


def build(place: str, shard: int, key: PseudonymKey, in_turn: bool = False) -> int:
    """Make the events of every n-th group of patients, or `in_turn` as `read_share`; returns their number."""
    there, count = Place(place), 0
    told, common = planned(there), load_settled(there)
    offset_us = offsets(key, msgspec.json.decode(there.read("account.json"))["dates"])
    for group in there.in_turn("group", range(told.groups)) if in_turn else range(shard, told.groups, len(told.shares)):
        table = of_group(there, group, common).events(facts(there, group, common), offset_us)
        sink = io.BytesIO()
        with writer(sink, told.groups) as file:
            file.write_table(table)
        there.write(f"events/{group:04d}.parquet", sink.getvalue())
        count += table.num_rows
    return count


def join(place: str, out: Path, building: Future[Any] | None = None) -> dict[str, Any]:
    """Write `events.parquet`, `quarantine.parquet` and `summary.json` into a folder; returns the summary.

    The place stays, so that this can be done again until its result is safe: then `clear`.
    `building`: the groups are still being made, each is written as soon as it is there.
    """
    there = Place(place)
    groups, told = planned(there).groups, msgspec.json.decode(there.read("account.json"))
    account = Account(patients=told["patients"])
    account.received.update({(file, kind): count for file, kind, count in told["received"]})
    account.quarantine = [Refusal(*one) for one in told["quarantine"]]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".spool", dir=out) as folder:
        draft = Path(folder)
        with (draft / "events.parquet").open("wb") as file:
            joined = Joined(file)
            for group in range(groups):
                joined.take(_awaited(there, f"events/{group:04d}.parquet", building))
            joined.finish()
        account.events = joined.rows
        return write_account(account, draft, out, told["dates"], told["validated"])


def clear(place: str) -> None:
    """Remove a place and all that lies there; nothing where it is gone already."""
    Place(place).remove()


def place_in(shuffle: str) -> str:
    """A place of its own in a folder or URL that all shards reach; "" in none."""
    root = shuffle if "://" in shuffle else str(Path(shuffle).resolve())
    return f"{root.rstrip('/')}/{secrets.token_hex(8)}" if shuffle else ""


def _awaited(place: Place, name: str, building: Future[Any] | None) -> bytes:
    while building is not None and not building.done():
        if content := place.read(name):
            return content
        time.sleep(0.005 if place.local is not None else 0.2)  # elsewhere each look is a request
    if building is not None:
        building.result()  # raises what stopped it
    if not (content := place.read(name)):
        raise ConcordantError(f"{name} is not at the place of these shards: a group was not built. Run the ingest again.")
    return content


def ingest(
    origin: str,
    out: Path,
    key: PseudonymKey,
    *,
    shards: int,
    engine: str = "processes",
    place: str = "",
    now: datetime | None = None,
    dates: Dates = "kept",
    check: Which | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """As `events.ingest`, and the same bytes, by several processes of an engine at once.

    `place` is where the processes leave things for each other: all of them have to reach it; "": a folder in `out`. One shard needs none.
    """
    if shards == 1 and engine == "processes":
        return alone(origin, out, key, now=now, dates=dates, check=check)
    import cryptography.fernet  # noqa: F401 - else each process imports it anew

    now_us = int((now or datetime.now(UTC)).timestamp() * 1_000_000)
    cleared(out)
    with (
        tempfile.TemporaryDirectory(prefix=".spool", dir=out) as folder,
        engines.opened(engine, shards) as run,
        ThreadPoolExecutor(1) as beside,
    ):
        there = place or f"{folder}/shuffle"
        tell("looking at the source")
        told = plan(origin, there, shards, now_us, key)
        tell(f"reading {len(told.tasks):,} files in {shards} shards")
        each = [(there, share, key, engine == "processes" and Place(there).local is not None) for share in range(shards)]
        run(read_share, each)
        tell("settling versions and the account")
        settle(there, key, dates, check)
        tell(f"building and writing the events in {shards} shards")
        summary = join(there, out, beside.submit(run, build, each))
        clear(there)  # whoever loses `out` after this begins again at the source
        return summary
