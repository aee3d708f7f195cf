"""The server lies as told, as often as told, and then tells the truth."""

import http.client
import json
import math
import urllib.error
import urllib.request

import pytest

from rlhf_dist.chaos.server import LyingServer, score, serving

ITEMS = [{"prompt": "a", "answer": "xyx"}, {"prompt": "b", "answer": ""}]


def ask(server: LyingServer) -> list[float]:
    request = urllib.request.Request(server.url, json.dumps({"items": ITEMS}).encode())
    with urllib.request.urlopen(request, timeout=5) as reply:
        return json.loads(reply.read())["scores"]


def test_lies_end() -> None:
    with serving() as server:
        assert ask(server) == [score("a", "xyx"), score("b", "")] == [2 / 3, 0.0]
        server.lie("nan", 1)
        assert all(map(math.isnan, ask(server)))
        server.lie("short", 2)
        assert len(ask(server)) == len(ask(server)) == 1
        for how, status in (("broken", 500), ("busy", 503)):
            server.lie(how, 1)
            assert not server.honest
            with pytest.raises(urllib.error.HTTPError, match=str(status)):
                ask(server)
        server.lie("closing", 1)
        with pytest.raises(http.client.RemoteDisconnected):
            ask(server)
        assert server.honest
        assert len(ask(server)) == 2
