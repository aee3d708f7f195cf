"""The two processes of `code.py`: `python -I -S sandbox.py answer|tests LINK PARENT MEMORY CPU [VERDICT]`, both locked down.

One runs an answer's code and serves what it defines; the other runs the tests, and calls what the answer defined over a socket.
What comes back is data, or a handle of an object that stays over there. So whatever the answer does to its interpreter (it
redefines builtins, ends the process, prints, looks through every object in memory), it never meets the tests, what they
expect, or the verdict.
"""

from __future__ import annotations

import builtins
import importlib
import json
import math
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

LONGEST = 2**22
"""Bytes of a message."""
CAUSE = 300
SPECIAL = ("len", "iter", "next", "getitem", "setitem", "delitem", "str", "repr", "reversed")
"""Methods that Python looks for at the class, and that are passed on. Not those by which an object would decide a test on itself,
as by a difference from everything that is 0, by containing everything, or by swallowing exceptions of a `with`."""
Known = Callable[[Any], Any]


def encoded(value: Any, other: Known) -> Any:
    """A value as JSON has it; `other` is asked about what is no plain data."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"f": repr(float(value))}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [encoded(each, other) for each in value]
    if isinstance(value, dict):
        return {"d": [[encoded(key, other), encoded(each, other)] for key, each in value.items()]}
    for name, kind in KINDS.items():
        if isinstance(value, kind):
            return {name: [encoded(each, other) for each in value]}
    if isinstance(value, complex):
        return {"c": [repr(value.real), repr(value.imag)]}
    return other(value)


KINDS: dict[str, Any] = {"t": tuple, "s": set, "z": frozenset, "b": bytes, "a": bytearray}


def decoded(told: Any, other: Known) -> Any:
    """The value again; `other` is asked about what is no plain data."""
    if isinstance(told, list):
        return [decoded(each, other) for each in told]
    if not isinstance(told, dict):
        return told
    ((name, content),) = told.items()
    if name in KINDS:
        return KINDS[name]([decoded(each, other) for each in content])
    if name == "d":
        return {decoded(key, other): decoded(each, other) for key, each in content}
    if name == "f":
        return float(content)
    if name == "c":
        return complex(*map(float, content))
    return other(told)


class Link:
    """Lines of JSON over a socket."""

    def __init__(self, handle: int) -> None:
        self._lines = socket.socket(fileno=handle).makefile("rwb")

    def tell(self, message: Mapping[str, Any]) -> None:
        """One more message."""
        self._lines.write(json.dumps(message).encode() + b"\n")
        self._lines.flush()

    def hear(self) -> dict[str, Any] | None:
        """The next message; None: the other one is gone, or says too much."""
        line = self._lines.readline(LONGEST)
        heard = json.loads(line) if line.endswith(b"\n") else None
        return heard if isinstance(heard, dict) else None


class Served:
    """What an answer's code has defined, and what it made of it since, by number."""

    def __init__(self) -> None:
        self._objects: list[Any] = []
        self._numbers: dict[int, int] = {}

    def told(self, value: Any) -> Any:
        """A handle; of a module only its name."""
        if isinstance(value, type(sys)):
            return {"m": value.__name__}
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._objects)
            self._objects.append(value)
        return {"o": self._numbers[id(value)]}

    def known(self, told: Any) -> Any:
        """The object of a handle."""
        return self._objects[told["o"]]

    def done(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What comes of a call, or of a look at an attribute."""
        target = self.known(asked)
        if asked["name"] is not None:
            target = getattr(target, asked["name"])
        if asked["args"] is None:
            return {"value": encoded(target, self.told)}
        args = decoded(asked["args"], self.known)
        said = target(*args, **{name: decoded(each, self.known) for name, each in asked["named"].items()})
        return {"value": encoded(said, self.told), "args": encoded(args, self.told)}


def serve(link: Link, code: str) -> None:
    """Run an answer's code, and then what the tests ask for."""
    served, space = Served(), dict[str, Any](__name__="answer")
    try:
        exec(compile(code, "answer", "exec"), space)
        names = {name: each for name, each in space.items() if not name.startswith("__")}
        link.tell({"names": {name: encoded(each, served.told) for name, each in names.items()}})
    except BaseException as error:  # noqa: BLE001 - an answer may raise anything
        link.tell(_raised(error))
        return
    while asked := link.hear():
        try:
            said = served.done(asked)
        except BaseException as error:  # noqa: BLE001 - so may its functions
            said = _raised(error)
        link.tell(said)


def _raised(error: BaseException) -> dict[str, Any]:
    known = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    return {"raised": known[0] if known else "", "text": _shown(error)}


def _shown(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:CAUSE]
    except BaseException:  # noqa: BLE001 - an exception of the answer's may fail in being shown
        return type(error).__name__[:CAUSE]


class AnswerError(Exception):
    """An exception of the answer's that is none of Python's own."""


class Gone(BaseException):
    """The answer's process has ended; no test catches that."""


class Proxy:
    """An object of the answer's, over there."""

    def __init__(self, asked: Elsewhere, number: int) -> None:
        self.__dict__.update(_asked=asked, _number=number)

    def __getattr__(self, name: str) -> Any:
        return self._asked.ask(self._number, name, None, {})

    def __call__(self, *args: Any, **named: Any) -> Any:
        """What it says over there."""
        return self._asked.ask(self._number, None, args, named)

    def __eq__(self, other: object) -> bool:
        """Two objects of the answer's are alike if it says so; none is like data, else one that equals everything would pass."""
        if self is other:
            return True
        return isinstance(other, Proxy) and self._asked.ask(self._number, "__eq__", (other,), {}) is True

    def __hash__(self) -> int:
        return hash(self._number)


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: Proxy, *args: Any) -> Any:
        try:
            return self._asked.ask(self._number, name, args, {})
        except AttributeError as error:  # as Python says it of a class without such a method
            raise TypeError(str(error)) from None

    return method


for _name in SPECIAL:
    setattr(Proxy, f"__{_name}__", _passed_on(f"__{_name}__"))


def _exception(name: str, text: str) -> Exception:
    """One of Python's own that a text makes, which tests may expect, or ours."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with suppress(TypeError):
            return kind(text)
    return AnswerError(text)


class Elsewhere:
    """The answer, as the tests see it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._proxies: dict[int, Proxy] = {}

    def names(self) -> dict[str, Any]:
        """What it defines, but for names of Python's own, whose meaning is not the answer's to say."""
        told: dict[str, Any] = self._heard()["names"]
        return {name: decoded(each, self._known) for name, each in told.items() if not hasattr(builtins, name)}

    def ask(self, number: int, name: str | None, args: tuple[Any, ...] | None, named: Mapping[str, Any]) -> Any:
        """Call an object or its method, or with `args` None look at its attribute; lists and the like change as over there."""
        sent = None if args is None else encoded([*args], self._told)
        self._link.tell(
            {
                "o": number,
                "name": name,
                "args": sent,
                "named": {key: encoded(each, self._told) for key, each in named.items()},
            }
        )
        heard = self._heard()
        for own, now in zip(args or (), decoded(heard.get("args", []), self._known), strict=False):
            if type(own) is type(now) and isinstance(own, (list, dict, set, bytearray)):
                own.clear()
                own.extend(now) if isinstance(own, (list, bytearray)) else own.update(now)
        return decoded(heard["value"], self._known)

    def _heard(self) -> dict[str, Any]:
        heard = self._link.hear()
        if heard is None:
            raise Gone("the answer's process ended")
        if "raised" in heard:
            raise _exception(str(heard["raised"]), str(heard["text"])[:CAUSE])
        return heard

    def _told(self, value: Any) -> Any:
        if isinstance(value, Proxy):
            return {"o": value._number}
        raise TypeError(f"a test gives the answer {type(value).__name__}; expected plain data, or what it made itself")

    def _known(self, told: Any) -> Any:
        if "m" in told:
            if told["m"].partition(".")[0] not in sys.stdlib_module_names:
                raise AnswerError(f"no module of Python's own: {told['m'][:CAUSE]}")
            return importlib.import_module(told["m"])
        return self._proxies.setdefault(told["o"], Proxy(self, told["o"]))


def tested(link: Link, tests: list[str]) -> str:
    """Why an answer does not pass; empty: it passes all tests."""
    try:
        space = {**Elsewhere(link).names(), "__name__": "tests"}
        for test in tests:
            exec(compile(test, "tests", "exec"), space)
    except BaseException as error:  # noqa: BLE001 - a test that ends in any other way than by its end has not passed
        return _shown(error) or "failed"
    return ""


def main(role: str, link: int, parent: int, memory: int, cpu_s: int, verdict: int = -1) -> None:
    """Lock down, take what is to be run from the standard input, and run it."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from lockdown import lock_down  # type: ignore[import-not-found]

    del sys.path[0]
    job = json.loads(sys.stdin.buffer.read())
    told = ""
    try:
        lock_down(os.getcwd(), parent, memory_bytes=memory, cpu_s=cpu_s)
    except OSError as error:
        told = str(error)
    if role == "answer":
        if not told:
            serve(Link(link), job["code"])
        return
    said = {"refused": told} if told else {"failed": tested(Link(link), job["tests"])}
    os.write(verdict, json.dumps({"nonce": job["nonce"], **said}).encode() + b"\n")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
