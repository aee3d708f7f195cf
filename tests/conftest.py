"""Shared by all tests: small models, one thread, and the suite's own account of its seconds."""

import json
import time
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.runs import Folders

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
SLOWEST = 10
SECONDS: dict[str, float] = defaultdict(float)
"""Of each test, setup and teardown in."""
OUTCOMES: dict[str, str] = {}
BEGAN = time.monotonic()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Numbers repeat, and the machine's cores are shared fairly."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> "Folders":
    from tests.runs import Folders  # transformers, for seconds

    return Folders(tmp_path_factory.mktemp("models"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--results", type=Path, metavar="FILE", help="write each test's outcome and seconds as JSON")
    parser.addoption("--no-skips", action="store_true", help="a test that cannot run here has failed (CI)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The quick ones first: they fail first, and some of them want a process that no Ray session lives in."""
    items.sort(key=lambda item: "integration" in item.path.parts)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With `--no-skips`, what this machine lacks is a failure: a package that was not installed must not hide a test."""
    report = yield
    _refuse_skip(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself as a whole."""
    report = yield
    _refuse_skip(report, collector.config)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config) -> None:
    if report.skipped and config.getoption("--no-skips"):
        report.outcome, report.longrepr = "failed", f"skipped, though --no-skips was given: {report.longrepr}"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    SECONDS[report.nodeid] += report.duration
    if report.when == "call" or report.outcome != "passed":
        OUTCOMES[report.nodeid] = report.outcome


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The total and the slowest, so that whoever adds to either sees it."""
    total = time.monotonic() - BEGAN
    terminalreporter.section(f"{total:.0f} s in all; the slowest tests")
    for name in sorted(SECONDS, key=lambda each: -SECONDS[each])[:SLOWEST]:
        terminalreporter.write_line(f"{SECONDS[name]:6.1f} s  {name}")
    if config.getoption("--results") is not None:
        _write_results(config.getoption("--results"), total)


def _write_results(file: Path, total: float) -> None:
    """In the shape of the benchmarks' results."""
    counts = {outcome: [*OUTCOMES.values()].count(outcome) for outcome in ("passed", "failed", "skipped")}
    rows = [{"test": name, "outcome": OUTCOMES[name], "seconds": round(SECONDS[name], 1)} for name in OUTCOMES]
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {
        "name": file.stem,
        "when": when,
        "machine": _machine(),
        "figures": {**counts, "seconds": total},
        "rows": rows,
    }
    file.write_text(json.dumps(record, indent=2) + "\n")


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'unknown'}, {len(names)} cores"
