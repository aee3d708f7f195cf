"""Where the page is served."""

import socket
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from rlhf_dist.errors import EnvironmentProblem
from rlhf_dist.feedback.database import open_database, sqlite_url
from rlhf_dist.feedback.serve import name_of, serve


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return open_database(sqlite_url(tmp_path / "f.db"))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_the_page_is_served_on_loopback_of_either_family(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    served: list[tuple[Any, dict[str, Any]]] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **how: served.append((app, how)))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve(engine, host=host, port=port, base_url=None)
    ((app, how),) = served
    assert (how["host"], how["port"]) == (host, port)
    assert TestClient(app, base_url=f"http://{name_of(host)}:{port}").get("/none").status_code == 404
    assert TestClient(app, base_url="http://evil.example").get("/none").status_code == 400


def test_a_taken_port_and_an_unknown_host_are_told(engine: Engine) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentProblem, match=rf"\[::1\]:{port} cannot be listened on"):
            serve(engine, host="::1", port=port, base_url=None)
    with pytest.raises(EnvironmentProblem, match=r"nobody.invalid:8000 cannot be listened on"):
        serve(engine, host="nobody.invalid", port=8000, base_url=None)
