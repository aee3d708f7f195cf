"""Rewards from a real HTTP server, which may do anything."""

import email.utils
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from rlhf_dist.config import RemoteReward
from rlhf_dist.errors import RewardError
from rlhf_dist.records import Prompt, RowKey
from rlhf_dist.scoring import remote
from rlhf_dist.scoring.answers import Answers, Failures
from rlhf_dist.scoring.remote import BadReply, ServerReward, pause_s, read_scores
from rlhf_dist.scoring.told import ToldOf, told_of
from rlhf_dist.secrets import keep
from rlhf_dist.store.row import single_turn

ANSWERS = ["one", "three", "seventeen"]


class Words:
    """A tokenizer whose tokens are numbers of answers."""

    def decode(self, tokens: Any, skip_special_tokens: bool) -> str:
        return ANSWERS[int(tokens[0])]


ROWS = [single_turn((number,), (number,)) for number in range(3)]


def answers(allowed: int = 0) -> Answers:
    return Answers(ROWS, Words(), Failures(allowed))


Reply = Callable[[BaseHTTPRequestHandler, int, list[dict[str, str]]], None]


@contextmanager
def server(reply: Reply) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server on loopback; `reply` takes the handler, the request's number and items. Yields its address and all headers."""
    requests: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
            requests.append({**{k.lower(): v for k, v in self.headers.items()}, "items": str(len(items))})
            with suppress(BrokenPipeError, ConnectionResetError):  # the client had enough
                reply(self, len(requests), items)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}/", requests
    finally:
        httpd.shutdown()
        httpd.server_close()


def says(status: int, body: bytes, **headers: str) -> Reply:
    def reply(handler: BaseHTTPRequestHandler, number: int, items: list[dict[str, str]]) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def lengths(handler: BaseHTTPRequestHandler, number: int, items: list[dict[str, str]]) -> None:
    says(200, json.dumps({"scores": [len(item["answer"]) for item in items]}).encode())(handler, number, items)


def first(*replies: Reply) -> Reply:
    """These replies to the first requests, then scores."""
    return lambda handler, number, items: [*replies, *[lengths] * 9][number - 1](handler, number, items)


def reward(url: str, **settings: Any) -> ServerReward:
    return ServerReward(RemoteReward(kind="remote", name="r", url=url, **settings))


@pytest.fixture(autouse=True)
def _no_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_WAIT_S", 0.01)


@pytest.fixture(autouse=True)
def _nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_dist.secrets._known", {})


def test_a_server_is_asked_in_batches_and_again_when_it_is_busy() -> None:
    with server(first(says(503, b""), lengths, says(429, b""))) as (url, requests):
        found = reward(url, batch=2).score(answers())
    assert found == {"r": [3.0, 5.0, 9.0]}
    assert [each["items"] for each in requests] == ["2", "2", "1", "1"]


GOOD = b'{"scores": [1, 2, 3]}'
REPLIES: dict[str, tuple[Reply, str]] = {
    "not JSON": (says(200, b"hello"), r"not JSON.*expected {\"scores\": \[numbers\]}"),
    "more after it": (says(200, GOOD + b"x"), "not JSON: Extra data"),
    "twice": (says(200, b'{"scores": [9, 9, 9], ' + GOOD[1:]), "not JSON: a key is there twice"),
    "another thing": (says(200, b"[1, 2, 3]"), "no list of scores"),
    "too few": (says(200, b'{"scores": [1]}'), "1 scores for 3 answers; expected one each"),
    "text": (says(200, b'{"scores": [1, "0.5", 2]}'), r'scores.1 is "0.5"; expected a number, on prompt .three. and'),
    "truth": (says(200, b'{"scores": [1, 2, true]}'), r"scores.2 is true; expected a number"),
    "null": (says(200, b'{"scores": [null, 2, 3]}'), r"scores.0 is null; expected a number"),
    "refused": (says(403, b""), "status 403; expected 200$"),
    "elsewhere": (says(307, b"", Location="http://127.0.0.1:1/"), "status 307; expected 200$"),
    "huge": (says(200, b" " * 5000), "larger than 1 KiB"),
    "compressed": (says(200, gzip.compress(GOOD), Content_Encoding="gzip"), "the reply is compressed"),
    "down": (says(500, b""), "status 500, in 2 attempts"),
    "gone for long": (
        says(503, b"", Retry_After="3600"),
        r"status 503, and asks for a pause of 3600 s \(Retry-After\)",
    ),
}


@pytest.mark.parametrize("case", REPLIES)
def test_a_reply_that_is_not_what_was_asked_for_stops_the_run(case: str) -> None:
    reply, message = REPLIES[case]
    with server(reply) as (url, requests), pytest.raises(RewardError, match=message):
        reward(url, attempts=2, max_kib=1).score(answers())
    assert len(requests) == (2 if case == "down" else 1), "only what may pass is tried again"


def dripping(head: bytes, drop: bytes) -> Reply:
    def reply(handler: BaseHTTPRequestHandler, number: int, items: list[dict[str, str]]) -> None:
        handler.wfile.write(head)
        for _ in range(100):
            handler.wfile.write(drop)
            time.sleep(0.05)

    return reply


HEAD = b"HTTP/1.0 200 OK\r\n"
SLOW = {
    "white space": dripping(HEAD + b"\r\n", b" "),
    "a header that goes on": dripping(HEAD + b"X-A: ", b"a"),
    "headers without end": dripping(HEAD, b"X-A: a\r\n"),
    "nothing": dripping(b"", b""),
}


@pytest.mark.parametrize("case", SLOW)
def test_the_limit_is_of_the_whole_request_however_it_is_drawn_out(case: str) -> None:
    with server(SLOW[case]) as (url, requests):
        with pytest.raises(RewardError, match=r"no whole reply within 0.3 s \(timeout_s\), in 2 attempts"):
            reward(url, attempts=2, timeout_s=0.3).score(answers())
        assert len(requests) == 2


def test_an_answer_without_a_number_is_its_own_failure_and_an_unreadable_reply_that_of_all_it_was_asked_for() -> None:
    asked = answers(allowed=3)
    with server(first(says(200, b'{"scores": [1, null]}'), says(200, b"?"))) as (url, _):
        found = reward(url, batch=2).score(asked)
    assert np.isnan(found["r"]).tolist() == [False, True, True]
    assert [(n, each.reward, each.answer) for n, each in asked.failures.causes.items()] == [
        (1, "r", "three"),
        (2, "r", "seventeen"),
    ]


def test_a_server_that_is_down_is_no_samples_failure() -> None:
    with server(says(500, b"")) as (url, _), pytest.raises(RewardError, match="status 500"):
        reward(url, attempts=2).score(answers(allowed=3))


@pytest.mark.parametrize("attempts", [1, 3])
def test_nobody_listening_is_told_after_all_attempts(attempts: int) -> None:
    with server(lengths) as (url, _):
        pass
    with pytest.raises(RewardError, match=f"ConnectError.*in {attempts} attempts"):
        reward(url, attempts=attempts, timeout_s=1).score(answers())


def test_a_name_that_nobody_knows_is_named() -> None:
    with pytest.raises(RewardError, match=r"reward r: http://no.such.host.invalid/: ConnectError: .*in 1 attempts"):
        reward("http://no.such.host.invalid/", attempts=1).score(answers())


def test_the_pause_that_a_server_asks_for_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(remote, "_rest", pauses.append)
    with server(first(says(503, b"", Retry_After="7"), says(503, b""))) as (url, _):
        assert reward(url).score(answers()) == {"r": [3.0, 5.0, 9.0]}
    assert pauses[0] == 7.0
    assert pauses[1] < 1.0


def test_pauses_are_asked_for_in_seconds_or_by_a_date() -> None:
    assert pause_s("12") == 12.0
    assert pause_s(email.utils.formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=2)
    for nothing in ("", "soon", "-3", email.utils.formatdate(0, usegmt=True), "Mon, 99 Nov 2026 99:00:00 GMT"):
        assert pause_s(nothing) == 0.0


def test_secrets_are_sent_and_never_said() -> None:
    keep({"TOKEN": "planted-token", "KEY": "planted-key"})
    sent: list[dict[str, str]] = []
    with server(says(401, b"")) as (url, requests):
        with pytest.raises(RewardError) as told:
            reward(url, token_env="TOKEN", headers_env={"X-Api-Key": "KEY"}).score(answers())
        sent += requests
    assert sent[0]["authorization"] == "Bearer planted-token"
    assert sent[0]["x-api-key"] == "planted-key"
    assert sent[0]["accept-encoding"] == "identity"
    assert "planted" not in str(told.value)


@pytest.mark.parametrize("number", ["1e400", "1" + "0" * 400, "1" + "0" * 5000, "NaN", "-Infinity"])
def test_numbers_without_bound_are_read_as_what_they_are_and_checked_by_whoever_adds_up(number: str) -> None:
    (said,) = read_scores(f'{{"scores": [{number}]}}'.encode(), 1)
    assert isinstance(said, float)
    assert not np.isfinite(said)


def test_what_is_nested_without_end_is_no_reply() -> None:
    with pytest.raises(BadReply, match="nested too deep"):
        read_scores(b"[" * 100_000, 1)


def test_scores_of_other_encodings_and_with_more_beside_them_are_read() -> None:
    body = '{"scores": [1, -0.5], "took": "é"}'
    found: Sequence[Any] = read_scores(body.encode("utf-16"), 2)
    assert found == read_scores(body.encode(), 2) == [1.0, -0.5]


def test_a_server_is_sent_a_rows_columns_where_it_has_any() -> None:
    asked: list[dict[str, Any]] = []

    def reply(handler: BaseHTTPRequestHandler, number: int, items: list[dict[str, Any]]) -> None:
        asked.extend(items)
        says(200, b'{"scores": [1, 2, 3]}')(handler, number, items)

    prompts = [Prompt(4, (1,), "", columns='{"level": 3, "tests": ["a"]}'), Prompt(5, (1,), ""), Prompt(6, (1,), "")]
    keys = [RowKey(0, prompt, 0) for prompt in (5, 4, 6)]
    with server(reply) as (url, _):
        made = ServerReward(RemoteReward(kind="remote", name="r", url=url))
        made.score(Answers(ROWS, Words(), Failures(0, keys), ToldOf(told_of(prompts))))
    assert [item.get("columns") for item in asked] == [None, {"level": 3, "tests": ["a"]}, None]
    assert asked[0] == {"prompt": "one", "answer": "one"}
