"""Code that must pass tests: what right code may do, and what no code gets away with."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from rlhf_dist.files import as_json
from rlhf_dist.scoring.functions import GuardedRule
from rlhf_dist.verifiers import lockdown, passes_tests
from rlhf_dist.verifiers.code import why_failed

ADD = "def add(a, b):\n    return a + b\n"
TEST = "assert add(1, 2) == 3"
WRONG = "def add(a, b):\n    return 0\n"


def why(code: str, *tests: str, timeout_s: float = 20.0) -> str:
    return why_failed(code, tests or [TEST], timeout_s=timeout_s)


def test_an_answers_block_is_what_must_pass() -> None:
    assert passes_tests("", f"Like this:\n```python\n{ADD}```\nDone.", [TEST, "assert add('a', 'b') == 'ab'"]) == 1.0
    assert passes_tests("", WRONG, TEST) == 0.0
    assert passes_tests("", ADD, None) is None
    with pytest.raises(ValueError, match="expected Python code"):
        passes_tests("", ADD, [" "])


DEEDS = """
import math
from collections import Counter, namedtuple
Point = namedtuple("Point", "x y")
LIMIT = {"most": (1, {2, 3}), 4: b"x", "inf": math.inf, "c": 1j}
class Stack:
    def __init__(self, *items): self.items = [*items]
    def push(self, item): self.items.append(item); return self
    def __len__(self): return len(self.items)
    def __eq__(self, other): return self.items == other.items
def reversed_in_place(items): items.reverse()
def numbers():
    yield from range(3)
def fails(kind="ValueError"): raise {"ValueError": ValueError, "own": Own}[kind]("no")
class Own(KeyError): pass
def written():
    with open("file.txt", "w") as file: file.write("hi")
    return open("file.txt").read()
def counted(text): return Counter(text)
"""
PASSES = [
    "assert LIMIT == {'most': (1, {2, 3}), 4: b'x', 'inf': float('inf'), 'c': 1j}",
    "s = Stack(1)\ns.push(2).push(3)\nassert len(s) == 3 and s.items == [1, 2, 3]\nassert s == Stack(1, 2, 3) != Stack(1)",
    "items = [1, 2, 3]\nreversed_in_place(items)\nassert items == [3, 2, 1]",
    "assert list(numbers()) == [0, 1, 2]\nassert [each for each in numbers()] == [0, 1, 2]",
    "try:\n    fails()\nexcept ValueError as error:\n    assert 'no' in str(error)\nelse:\n    raise AssertionError",
    "try:\n    fails(kind='own')\nexcept KeyError:\n    pass",
    "assert written() == 'hi'",
    "assert counted('aab') == {'a': 2, 'b': 1}",
    "assert Point(1, 2) == (1, 2)\nassert math.isclose(math.pi, 3.14159, abs_tol=1e-3)",
]


@pytest.mark.parametrize("test", PASSES)
def test_what_right_code_may_do(test: str) -> None:
    assert why(DEEDS, test) == ""


FORGERIES = {
    "leaves": "import sys\nsys.exit(0)",
    "leaves at once": "import os\nos._exit(0)",
    "leaves when called": "import os\ndef add(a, b):\n    os._exit(0)",
    "leaves at its end": f"import atexit, os\natexit.register(os._exit, 0)\n{WRONG}",
    "says so": (
        'import os\nfor n in range(20):\n    try: os.write(n, b\'{"failed": ""}\\n\')\n    except OSError: pass\n'
        + WRONG
    ),
    "prints": f"print('passed'); print('OK')\n{WRONG}",
    "redefines what fails": f"import builtins\nbuiltins.AssertionError = None\nAssertionError = None\n{WRONG}",
    "redefines Python": "import builtins\nbuiltins.abs = abs = len = isinstance = lambda *_: True\n" + WRONG,
    "patches modules": "import math, json, operator\nmath.isclose = operator.eq = json.loads = lambda *_: True\n"
    + WRONG,
    "equals everything": "class Any:\n    def __eq__(self, other): return True\n    __ne__ = None\nadd = lambda a, b: Any()",
    "is an int that equals everything": (
        "class Any(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\nadd = lambda a, b: Any(0)"
    ),
    "claims every name": "class Every(dict):\n    def __missing__(self, key): return lambda *_: 3\nglobals().update(Every())",
    "looks for the test": (
        "import gc, sys\ndef add(a, b):\n    frame, seen = sys._getframe(), []\n    while frame:\n"
        "        seen += [frame.f_locals, frame.f_globals]\n        frame = frame.f_back\n"
        "    return 3 if 'ass' + 'ert add' in str(seen) + str(gc.get_objects()) else 0"
    ),
    "reads others' memory": (
        "import os\ndef add(a, b):\n    for pid in os.listdir('/proc'):\n        if pid.isdigit():\n"
        "            if b'assert' in open(f'/proc/{pid}/mem', 'rb').read(9): return 3\n    return 0"
    ),
    "ends its parent": "import os\ndef add(a, b):\n    os.kill(os.getppid(), 9)\n    return 3",
    "runs a shell": "import subprocess\ndef add(a, b):\n    return int(subprocess.check_output('echo 3', shell=True))",
    "forks": "import os\ndef add(a, b):\n    return 3 if os.fork() else 3",
    "starts a thread": "import threading\ndef add(a, b):\n    threading.Thread(target=print).start()\n    return 3",
    "opens a socket": "import socket\ndef add(a, b):\n    socket.create_connection(('127.0.0.1', 22))\n    return 3",
    "makes a local socket": "import socket\ndef add(a, b):\n    socket.socketpair()\n    return 3",
    "reads files": "def add(a, b):\n    return len(open('/etc/passwd').read()) and 3",
    "lists files": "import os\ndef add(a, b):\n    return os.listdir('/') and 3",
    "writes elsewhere": "def add(a, b):\n    open('/tmp/forged', 'w')\n    return 3",
    "changes modes": "import os\ndef add(a, b):\n    os.chmod('/tmp', 0o777)\n    return 3",
    "takes all memory": "def add(a, b):\n    return len(bytearray(10**10)) and 3",
    "fills the disk": "def add(a, b):\n    return open('x', 'wb').write(b'x' * 10**8) and 3",
    "opens everything": "def add(a, b):\n    return len([open('x', 'w') for _ in range(100)]) and 3",
    "raises its limits": "import resource\ndef add(a, b):\n    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))\n    return 3",
    "knows our secrets": "import os\ndef add(a, b):\n    return 3 if {*os.environ} - {'LC_CTYPE'} else 0",
    "says too much": "def add(a, b):\n    return [0] * 10**7",
    "nests": "x = []\nfor _ in range(10**5): x = [x]\ndef add(a, b):\n    return x",
    "is no Python": "def add(a, b) return 3",
    "never returns": "def add(a, b):\n    while True: pass",
    "never begins": "import time\ntime.sleep(1000)",
}
SLOW = ("never returns", "never begins")


@pytest.mark.parametrize("forgery", FORGERIES)
def test_no_answer_passes_by_anything_but_what_it_computes(forgery: str) -> None:
    assert why(FORGERIES[forgery], timeout_s=1.0 if forgery in SLOW else 20.0) != ""


@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def __sub__(self, other): return 0.0", "assert abs(add(1, 2) - 3) < 1e-6"),
        ("def __contains__(self, other): return True", "assert 3 in add(1, 2)"),
        (
            "def __enter__(self): return 0\n    def __exit__(self, *_): return True",
            "with add(1, 2) as n:\n    assert n == 3",
        ),
        ("def __lt__(self, other): return True", "assert 2 < add(1, 2) < 4"),
        ("def __float__(self): return 3.0", "import math\nassert math.isclose(add(1, 2), 3)"),
        ("def __round__(self, n=0): return 3", "assert round(add(1, 2)) == 3"),
    ],
)
def test_no_object_decides_a_test_on_itself(code: str, test: str) -> None:
    assert why(f"class Any:\n    {code}\nadd = lambda a, b: Any()", test) != ""


def test_a_test_that_ends_early_or_catches_everything_has_not_passed() -> None:
    assert why(ADD, "raise SystemExit(0)") != ""
    assert why(ADD, "import os\nos._exit(0)") == "the tests' process ended before its verdict"
    assert why("import os\ndef add(a, b): os._exit(0)", "try:\n    add(1, 2)\nexcept Exception:\n    pass") != ""


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    assert why("open('mine', 'w').write('x')\n" + ADD) == ""
    assert why("import time\ntime.sleep(100)", timeout_s=0.3) == "it took longer than 0.3 s"
    assert [*tmp_path.iterdir()] == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_processes_end_with_the_one_that_asked() -> None:
    call = "why_failed('import time; time.sleep(99)', ['x'], timeout_s=99)"
    code = f"from rlhf_dist.verifiers.code import why_failed; {call}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True) as asker:
        for _ in range(200):
            children = Path(f"/proc/{asker.pid}/task/{asker.pid}/children").read_text().split()
            if len(children) == 2:
                break
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(asker.pid, signal.SIGKILL)
    for _ in range(200):
        if not any(Path(f"/proc/{pid}").exists() and _alive(pid) for pid in children):
            break
        time.sleep(0.05)
    else:
        pytest.fail(f"{children} are still there")


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def test_it_scores_in_a_functions_own_process_by_the_rows_columns() -> None:
    with closing(GuardedRule("rlhf_dist.verifiers:passes_tests", 30.0)) as rule:
        told = (as_json({"tests": [TEST], "timeout_s": 5}), "")
        assert [*rule.scores([("", ADD, *told), ("", WRONG, *told), ("", ADD, "{}", "")])] == [1.0, 0.0, None]
        assert rule.asks.needed == ["tests"]


def test_code_that_cannot_be_locked_down_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lockdown.platform, "machine", lambda: "pdp11")
    with pytest.raises(OSError, match="cannot be locked down on pdp11; expected x86_64"):
        lockdown.lock_down("/", 1, memory_bytes=1, cpu_s=1)
