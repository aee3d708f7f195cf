"""Rewards from a server: batches, deadlines, retries with backoff, and replies that are checked before they count."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from rlhf_dist.config import RemoteReward
from rlhf_dist.errors import RewardError
from rlhf_dist.files import as_json
from rlhf_dist.progress import step
from rlhf_dist.records import RowTold
from rlhf_dist.scoring.answers import Answers
from rlhf_dist.secrets import masked, secret

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Of the waits between attempts, which double; between half of each and all of it is waited."""
LONGEST_RETRY_AFTER_S = 120.0
"""A server that asks for a longer pause than this is as good as gone."""
LOOK_S = 1.0
"""A request that has time left is progress, and is told to be so this often."""


class Busy(Exception):
    """The server did not answer, or answered that it is overloaded or broken for now."""

    def __init__(self, told: str, pause_s: float = 0.0) -> None:
        """Say what happened, and for how long the server asks to be left alone."""
        super().__init__(told)
        self.pause_s = pause_s


class Refused(Exception):
    """What the server said will not become better by asking again."""


class BadReply(Exception):
    """A reply that is not what was asked for: no scores, or not one for each answer."""


class ServerReward:
    """A `Component` around an HTTP server.

    A server that is down, busy after all attempts, or refuses us ends the run. A reply without a number for an answer is that
    answer's failure, and one that cannot be read is that of all the answers asked about.
    """

    def __init__(self, settings: RemoteReward) -> None:
        """Connect when the first answers come; the secrets that the settings name are known by then (`secrets.keep`)."""
        self.name, self._settings = settings.name, settings
        headers = {header: secret(variable) for header, variable in settings.headers_env.items()}
        if settings.token_env:
            headers["Authorization"] = f"Bearer {secret(settings.token_env)}"
        # Compressed replies could be a thousand times as large as what was counted.
        self._headers = {**headers, "Accept-Encoding": "identity"}
        self._loop = asyncio.new_event_loop()
        self._client = httpx.AsyncClient(timeout=None, follow_redirects=False, headers=self._headers)

    def score(self, answers: Answers) -> dict[str, list[float]]:
        """What the server says of each answer.

        Raises:
            RewardError: after all attempts there is no reply, or the server refuses to give one.
        """
        items = [item_of(*text, told) for text, told in zip(answers.texts, answers.told, strict=True)]
        size = self._settings.batch
        found: list[float] = []
        for start in range(0, len(items), size):
            for said in self._ask(items[start : start + size]):
                if isinstance(said, str):
                    answers.fail(len(found), self.name, f"{self._settings.url}: {said}")
                found.append(float("nan") if isinstance(said, str) else said)
        return {self.name: found}

    def _ask(self, batch: Sequence[dict[str, Any]]) -> list[float | str]:
        """A score for each answer, or why there is none."""
        settings = self._settings
        asked = {"items": batch}
        for attempt in range(settings.attempts):
            try:
                body = self._loop.run_until_complete(self._watched(asked))
                return read_scores(body, len(batch))
            except BadReply as error:
                return [str(error)] * len(batch)
            except Refused as error:
                raise RewardError(f"reward {self.name}: {settings.url}: {error}") from None
            except Busy as error:
                last = error
            if last.pause_s > LONGEST_RETRY_AFTER_S:
                told = f"{last}, and asks for a pause of {last.pause_s:.0f} s (Retry-After)"
                raise RewardError(
                    f"reward {self.name}: {settings.url}: {told}; expected {LONGEST_RETRY_AFTER_S:g} s at most"
                )
            if attempt + 1 < settings.attempts:
                _rest(max(last.pause_s, _backoff_s(attempt)))
        raise RewardError(f"reward {self.name}: {settings.url}: {last}, in {settings.attempts} attempts")

    async def _watched(self, asked: dict[str, Any]) -> bytes:
        """The reply, while somebody is told that we still wait for it."""
        request = asyncio.ensure_future(self._limited(asked))
        while not (await asyncio.wait({request}, timeout=LOOK_S))[0]:
            step()
        step()
        return request.result()

    async def _limited(self, asked: dict[str, Any]) -> bytes:
        """The whole of it, from the look-up of the name to the last byte, within the limit."""
        limit = self._settings.timeout_s
        try:
            async with asyncio.timeout(limit):
                return await self._post(asked)
        except TimeoutError:
            raise Busy(f"no whole reply within {limit:g} s (timeout_s)") from None
        except httpx.TransportError as error:
            cause = f": {error}" if str(error) else ""
            raise Busy(masked(f"{type(error).__name__}{cause}")) from None
        except (httpx.InvalidURL, httpx.HTTPError, UnicodeError) as error:
            raise Refused(masked(f"{type(error).__name__}: {error}")) from None

    async def _post(self, asked: dict[str, Any]) -> bytes:
        """The reply's bytes, read only as far as the limit."""
        async with self._client.stream("POST", self._settings.url, json=asked) as response:
            status = response.status_code
            if status == 429 or status >= 500:
                raise Busy(f"status {status}", pause_s(response.headers.get("Retry-After", "")))
            if status != 200:
                raise Refused(f"status {status}; expected 200")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise Refused("the reply is compressed; expected it plain, as asked for")
            body = bytearray()
            async for piece in response.aiter_raw():
                body += piece
                if len(body) > self._settings.max_kib * 1024:
                    raise BadReply(f"the reply is larger than {self._settings.max_kib} KiB (max_kib)")
            return bytes(body)


def item_of(prompt: str, answer: str, told: RowTold) -> dict[str, Any]:
    """What a server is asked about an answer: its prompt's other columns too, if there are any."""
    return {"prompt": prompt, "answer": answer, **({"columns": json.loads(told.columns)} if told.columns else {})}


def _backoff_s(attempt: int) -> float:
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**attempt) * random.uniform(0.5, 1.0)


def _rest(seconds: float) -> None:
    """Wait, and let whoever watches know that this is meant."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, LOOK_S))
        step()


def pause_s(retry_after: str) -> float:
    """Seconds that a `Retry-After` asks for (RFC 9110, section 10.2.3: a number, or a date); 0 where it says neither."""
    if retry_after.strip().isdecimal():
        return float(retry_after[:10])
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def read_scores(body: bytes, expected: int) -> list[float | str]:
    """Scores of a reply, `{"scores": [number]}`; where there is no finite number, why not.

    Raises:
        BadReply: it is no such object, or not of one entry for each answer.
    """
    try:
        reply = json.loads(body, parse_int=float, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise BadReply('nested too deep; expected {"scores": [numbers]}') from None
    except ValueError as error:
        raise BadReply(f'not JSON: {error}; expected {{"scores": [numbers]}}') from None
    scores = reply.get("scores") if isinstance(reply, dict) else None
    if not isinstance(scores, list):
        raise BadReply('no list of scores; expected {"scores": [numbers]}')
    if len(scores) != expected:
        raise BadReply(f"{len(scores)} scores for {expected} answers; expected one each")
    return [said if isinstance(said, float) else _no_number(number, said) for number, said in enumerate(scores)]


def _no_number(number: int, said: Any) -> str:
    text = as_json(said)
    return f"scores.{number} is {text[:100]}{'...' * (len(text) > 100)}; expected a number"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found
