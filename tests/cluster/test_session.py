"""What a session keeps from people."""

import inspect

import pytest
import ray

from rlhf_dist.cluster.session import hush


def test_rays_paragraphs_do_not_come_before_the_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = ray._private.worker
    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages), "Ray prints them another way now"
    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    hush()
    worker.print_to_stdstream({"lines": ["A worker died"], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert capsys.readouterr() == ("", "")
