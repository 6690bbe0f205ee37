"""`bei bench`: the real command against a real server, and against servers that fail."""

import asyncio
import gc
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from xml.etree import ElementTree

import httpx
import pytest
import yaml
from click.testing import CliRunner

from bei import cli, extras
from bei.bench import results
from bei.bench.connection import Place
from bei.bench.load import Figures, Load, Target, Window, measure
from bei.bench.texts import texts
from tests.support.configs import tiny_config
from tests.support.servers import serving

QUICK = ("--seconds", "0.2", "--warmup", "0.05", "--rounds", "2")


def run(*arguments: object):
    return CliRunner().invoke(cli.main, ["bench", *map(str, arguments)])


@pytest.fixture(scope="module")
def server(tmp_path_factory, tiny_folder) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("bench")
    (folder / "config.yaml").write_text(yaml.safe_dump(tiny_config(tiny_folder)))
    flags = ("--engine", "null", "--alias", "other=tiny")
    with serving(*flags[:2], log=folder / "log", config=folder / "config.yaml") as url:
        yield url


def served(url: str) -> float:
    """Texts that the server says it embedded."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("te_embed_count"))


@pytest.mark.parametrize(("api", "batch"), [(None, 1), ("tei", 3), ("cohere", 2), ("infinity", 1)])
def test_what_is_counted_was_served(server, tmp_path, api, batch):
    before, file = served(server), tmp_path / "found.json"
    chosen = ("--api", api) if api else ()
    load = ("--concurrency", "1,4", "--lengths", "1-9", "--batch", batch, "--json", file)
    result = run(f"ours={server}", *QUICK, *load, *chosen)
    assert result.exit_code == 0, result.output
    assert f"ours: {api or 'openai'} at {server}" in result.stderr
    found = json.loads(file.read_text())["results"]
    assert [one["load"]["clients"] for one in found] == [1, 4]
    for one in found:
        assert (one["ratio"], one["errors"]) == (1.0, {})
        assert one["texts_per_second"] == pytest.approx(batch * one["requests_per_second"])
        assert 0 < one["p50"] <= one["p90"] <= one["p99"]
    counted = sum(batch * one["answered"] for of in found for one in of["rounds"])
    assert 0 < counted <= served(server) - before
    assert " 4 clients  ours " in result.stdout


def test_servers_take_turns_and_the_first_is_the_base(server):
    result = run(f"a={server}", f"b={server}", "--rates", "40", "--mix", "short", *QUICK, "--json", "-")
    found = json.loads(result.stdout)["results"]
    assert [(one["server"], one["load"]) for one in found] == [(name, {"clients": None, "rate": 40}) for name in "ab"]
    assert [len(one["rounds"]) for one in found] == [2, 2]
    assert [one["answered"] for one in found[0]["rounds"]] == [one["answered"] for one in found[1]["rounds"]] != [0, 0]


def test_a_picture_of_the_curve(server, tmp_path):
    places = (tmp_path / "curve.png", tmp_path / "curve.svg")
    words = [word for place in places for word in ("--plot", place)]
    result = run(f"a={server}", f"b={server}", *QUICK, "--concurrency", "1,2", *words)
    if find_spec("matplotlib") is None:
        assert (result.exit_code, extras.install("plot") in result.stderr) == (2, True)
        return
    assert result.exit_code == 0, result.output
    assert places[0].read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(places[1]).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["http://127.0.0.1:1"], "http://127.0.0.1:1 does not answer"),
        (["ftp://host"], "is no address of a server"),
        (["URL", "URL"], "two servers have one name"),
        (["URL", "--rates", "1", "--concurrency", "1"], "leave one out"),
        (["URL", "--concurrency", "1,x"], "--concurrency '1,x': use numbers"),
        (["URL", "--concurrency", "0.5"], "clients are whole numbers"),
        (["URL", "--rates", "0"], "--rates '0': use numbers"),
        (["URL", "--lengths", "9-3"], "--lengths '9-3': use a number of words"),
        (["URL", "--lengths", "3", "--texts", "a.txt"], "--texts and --lengths each say which texts; leave one"),
        (["URL", "--lengths", "3", "--mix", "short"], "--mix and --lengths each say which texts; leave one"),
        (["URL", "--texts", "absent.txt"], "No such file"),
        (["URL", "--api", "tei-rerank"], "POST /rerank: 424"),
        (["URL", "--plot", "curve.pdf"], "must end with .png or .svg"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_status_2(server, arguments, told):
    result = run(*(server if word == "URL" else word for word in arguments))
    assert (result.exit_code, told in result.stderr.splitlines()[-1]) == (2, True), result.stderr


def test_lengths():
    assert {len(text.split()) for text in texts(None, None, "7", 0)} == {7}
    ranged = [len(text.split()) for text in texts(None, None, "3-5", 0)]
    assert set(ranged) == {3, 4, 5}
    drawn = sorted(len(text.split()) for text in texts(None, None, "lognormal:50:0.5", 0))
    assert 40 < drawn[len(drawn) // 2] < 60
    assert drawn[0] < 25 and drawn[-1] > 100
    assert texts(None, None, "3-5", 0) == texts(None, None, "3-5", 0) != texts(None, None, "3-5", 1)


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def answering(answer: Answer) -> Iterator[Place]:
    """A server in a thread that answers each connection so."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    starting = asyncio.start_server(answer, "127.0.0.1", 0)
    server = asyncio.run_coroutine_threadsafe(starting, loop).result(10)

    async def end() -> None:
        """Each connection ends when its client is gone. The server closes after them: it would drop the socket of one
        that has just been accepted, unclosed."""
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.gather(*tasks)
        server.close()

    yield Place("127.0.0.1", server.sockets[0].getsockname()[1])
    asyncio.run_coroutine_threadsafe(end(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def saying(*answers: bytes | None) -> Answer:
    """Each request in turn gets one of these; None is silence. It ends with the connection."""
    turn = iter(range(1 << 30))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError), closing(writer):
            while await reader.read(1 << 16):
                said = answers[next(turn) % len(answers)]
                if said is None:
                    continue
                writer.write(said)
                if b"close" in said:
                    break

    return answer


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"
CLOSING = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n"


def test_a_server_of_these_tests_closes_the_connection_that_comes_last():
    for _ in range(20):
        with answering(saying(OK)) as place:
            socket.create_connection((place.host, place.port)).close()
        gc.collect()  # a socket that nobody closed says so, which is an error here


@pytest.mark.parametrize(
    ("answers", "load", "kinds", "some"),
    [
        ([OK, CHUNKED, CLOSING], Load(clients=2), set(), True),
        ([OK, BUSY], Load(clients=2), {"429"}, True),
        ([b"close"], Load(clients=1), {"connection"}, False),
        ([None], Load(clients=2), {"timeout"}, False),
        ([OK, BUSY, None], Load(rate=100), {"429", "timeout"}, True),
    ],
)
def test_errors_are_counted_and_are_no_answers(answers, load, kinds, some):
    with answering(saying(*answers)) as place:
        target = Target("a", place, [place.request("/", b"{}")], texts=1)
        found = measure(target, load, Window(warmup=0.0, counted=0.3, timeout=0.05 if None in answers else 10))
    assert set(found.errors) == kinds
    assert (found.answered > 0, found.p50 is not None) == (some, some)
    assert found.requests_per_second == pytest.approx(found.answered / 0.3)
    if "429" in kinds and load.clients:
        assert found.errors["429"] == pytest.approx(found.answered, abs=load.clients)


def test_an_open_loop_counts_the_time_that_a_request_waited():
    """A server that answers one request at a time, each in 20 ms, has 100 a second to answer."""
    turn = asyncio.Lock()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError), closing(writer):
            while await reader.read(1 << 16):
                async with turn:
                    await asyncio.sleep(0.02)  # the server that is measured is slow
                writer.write(OK)

    with answering(slow) as place:
        target = Target("a", place, [place.request("/", b"{}")], texts=1)
        found = measure(target, Load(rate=100), Window(warmup=0.0, counted=0.6, timeout=10))
    assert found.errors == {}
    assert found.p99 is not None and found.p99 > 200


def test_figures_are_medians_and_ratios_are_of_one_round():
    def figures(*rates: float) -> list[Figures]:
        return [Figures(rate, 2 * rate, 1.0, 2.0, 3.0, 1.5, 9, {"429": 1} if rate == 1 else {}) for rate in rates]

    found = {Load(clients=1): {"a": figures(1, 10, 100), "b": figures(2, 40, 300)}}
    ours, theirs = results.as_json(found)
    assert (ours["requests_per_second"], theirs["requests_per_second"]) == (10, 40)
    assert (ours["ratio"], theirs["ratio"]) == (1, 3)
    assert (ours["errors"], theirs["errors"]) == ({"429": 1}, {})
    silent = [Figures(0.0, 0.0, None, None, None, None, 0, {"timeout": 3})]
    lines = results.table({Load(rate=5): {"a": silent}}).splitlines()
    assert lines[1].split() == ["5/s", "a", "0.00", "-", "0.00", "-", "-", "-", "3", "timeout"]
