"""A canary gets its share and nobody waits for it; a shadow is asked beside, compared, and its answer is never given."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from answers import ANSWER

from serving.guard import Unavailable
from serving.monitor import Metrics
from serving.split import WAITING, Split
from serving.upstream import FAILURES

PATH = "/v1/models/m:predict"
Answer = Callable[[web.Request], Awaitable[web.Response]]


def says(name: str | None, seen: Counter[str], abstained: str | None = None) -> Answer:
    async def answer(request: web.Request) -> web.Response:
        await request.read()
        seen[str(name)] += 1
        return web.json_response({"predictions": [ANSWER.model_dump(mode="json") | {"recommended": name, "abstained": abstained}]})

    return answer


async def _served(answer: Answer) -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_post(PATH, answer)
    app.router.add_post(PATH.replace("predict", "explain"), answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, f"127.0.0.1:{runner.addresses[0][1]}"


def _asked(percent: int, champion: Answer, canary: Answer | None, work: Callable[[Split], Awaitable[Any]]) -> tuple[Any, Metrics]:
    """What `work` gives with both servers up; without `canary` nothing listens where it should."""
    metrics = Metrics()

    async def all_of_it() -> Any:
        one, here = await _served(champion)
        other, there = await _served(canary) if canary else (None, "127.0.0.1:9")
        split = Split(here, there, percent, metrics)
        try:
            told = await work(split)
            await asyncio.gather(*split._shadows)
            return told
        finally:
            await split.close()
            for runner in filter(None, (one, other)):
                await runner.cleanup()

    return asyncio.run(all_of_it()), metrics


def _shadowed(metrics: Metrics) -> dict[str, float]:
    found = {result: metrics.registry.get_sample_value("concordant_shadow_answers_total", {"result": result}) for result in RESULTS}
    return {result: value for result, value in found.items() if value}


RESULTS = ("same", "different", "no answer", "left out")


def _body(n: int) -> bytes:
    return json.dumps({"instances": [{"row": n}]}).encode()


def test_a_canary_gets_its_share_and_the_same_patient_always_the_same_model() -> None:
    seen: Counter[str] = Counter()

    async def work(split: Split) -> list[bytes]:
        return [await split.ask(PATH, _body(n), "r", [str(n % 400)]) for n in range(800)]

    told, metrics = _asked(25, says("old", seen), says("new", seen), work)
    assert told[:400] == told[400:] and 140 < seen["new"] < 260 and seen["old"] + seen["new"] == 800
    assert _shadowed(metrics) == {}


def test_where_the_canary_is_down_the_champion_answers() -> None:
    seen: Counter[str] = Counter()

    async def work(split: Split) -> list[bytes]:
        return [await split.ask(PATH, _body(n), "r", [str(n)]) for n in range(30)]

    told, _ = _asked(100, says("old", seen), None, work)
    assert all(b"old" in each for each in told) and seen["old"] == 30


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b'{"predictions": [{"recommended": "new"}]}',
        b'{"predictions": []}',
        json.dumps({"predictions": [ANSWER.model_dump(mode="json")] * 2}).encode(),
    ],
)
def test_where_the_canary_answers_what_can_not_be_passed_on_the_champion_answers_and_the_canary_is_soon_left_alone(text: bytes) -> None:
    seen: Counter[str] = Counter()

    async def broken(request: web.Request) -> web.Response:
        await request.read()
        seen["broken"] += 1
        return web.Response(body=text, content_type="application/json")

    async def work(split: Split) -> list[bytes]:
        return [await split.ask(PATH, _body(n), "r", [str(n)]) for n in range(30)]

    told, _ = _asked(100, says("old", seen), broken, work)
    assert all(b'"old"' in each for each in told) and seen == {"old": 30, "broken": FAILURES}


def test_where_the_champion_is_down_nothing_is_made_up() -> None:
    async def broken(_: web.Request) -> web.Response:
        return web.Response(status=500)

    async def work(split: Split) -> None:
        await split.ask(PATH, _body(1), "r")

    with pytest.raises(Unavailable):
        _asked(0, broken, says("new", Counter()), work)


@pytest.mark.parametrize(
    ("shadow", "result"),
    [
        (says("old", Counter()), "same"),
        (says("new", Counter()), "different"),
        (says(None, Counter(), "equipoise"), "different"),
        (None, "no answer"),
    ],
)
def test_a_shadow_is_compared_and_its_answer_is_never_given(shadow: Answer | None, result: str) -> None:
    async def work(split: Split) -> list[bytes]:
        return [await split.ask(PATH, _body(n), "r") for n in range(5)]

    told, metrics = _asked(0, says("old", Counter()), shadow, work)
    assert all(json.loads(each)["predictions"][0]["recommended"] == "old" for each in told)
    assert _shadowed(metrics) == {result: 5}


def test_a_shadow_that_answers_for_another_number_of_patients_gives_no_answer() -> None:
    async def more(_: web.Request) -> web.Response:
        return web.json_response({"predictions": [{"recommended": "old", "abstained": None}] * 2})

    async def work(split: Split) -> bytes:
        return await split.ask(PATH, _body(1), "r")

    _, metrics = _asked(0, says("old", Counter()), more, work)
    assert _shadowed(metrics) == {"no answer": 1}


def test_a_slow_shadow_holds_nobody_up_and_its_questions_are_bounded() -> None:
    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(0.3)
        return web.json_response({"predictions": [{"recommended": "old", "abstained": None}]})

    async def work(split: Split) -> float:
        began = asyncio.get_running_loop().time()
        await asyncio.gather(*(split.ask(PATH, _body(n), "r") for n in range(40)))
        return asyncio.get_running_loop().time() - began

    _, metrics = _asked(0, says("old", Counter()), slow, work)
    assert _shadowed(metrics) == {"same": WAITING, "left out": 40 - WAITING}


def test_explanations_are_not_shadowed() -> None:
    seen: Counter[str] = Counter()

    async def work(split: Split) -> bytes:
        return await split.ask(PATH.replace("predict", "explain"), _body(1), "r")

    _asked(0, says("old", seen), says("new", seen), work)
    assert seen == {"old": 1}
