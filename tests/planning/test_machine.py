import os

from rlhf_dist import doctor
from rlhf_dist.planning import machine, plan


def test_a_container_may_use_what_it_was_given(tmp_path, monkeypatch) -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "LIMIT", limit)
    assert machine.memory_bytes() == whole
    for text, expected in (("max\n", whole), (f"{2**30}\n", 2**30), (str(whole * 2), whole)):
        limit.write_text(text)
        assert machine.memory_bytes() == expected
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5})
    assert machine.cores() == 3


def test_the_doctor_and_the_plan_ask_the_same() -> None:
    assert doctor.memory_bytes is plan.memory_bytes is machine.memory_bytes
    assert doctor.cores is plan.cores is machine.cores
