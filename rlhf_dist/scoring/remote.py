"""Rewards from a server: batches, deadlines, retries with backoff, and replies that are checked before they count."""

from __future__ import annotations

import httpx
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from rlhf_dist.config import RemoteReward
from rlhf_dist.errors import RewardError
from rlhf_dist.scoring.answers import Answers

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0


class Reply(BaseModel):
    """What a server answers."""

    model_config = ConfigDict(extra="ignore")

    scores: list[FiniteFloat]
    """One per item, in their order."""


class Busy(Exception):
    """The server did not answer, or answered that it is overloaded or broken for now."""


class ServerReward:
    """A `Component` around an HTTP server."""

    def __init__(self, settings: RemoteReward) -> None:
        """Connect when the first answers come."""
        self.name, self._settings = settings.name, settings
        self._client = httpx.Client(timeout=settings.timeout_s, follow_redirects=False)

    def score(self, answers: Answers) -> dict[str, list[float]]:
        """What the server says of each answer.

        Raises:
            RewardError: after all attempts there is no reply, or a reply is too large or not what was asked for.
        """
        texts, size = answers.texts, self._settings.batch
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
        return {self.name: [score for batch in batches for score in self._ask(batch)]}

    def _ask(self, batch: list[tuple[str, str]]) -> list[float]:
        settings = self._settings
        attempts = Retrying(
            retry=retry_if_exception_type(Busy),
            stop=stop_after_attempt(settings.attempts),
            wait=wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S),
            reraise=True,
        )
        try:
            body = attempts(self._post, {"items": [{"prompt": prompt, "answer": answer} for prompt, answer in batch]})
        except Busy as error:
            raise RewardError(
                f"reward {self.name}: {settings.url}: {error}, in {settings.attempts} attempts"
            ) from error
        return self._read(body, len(batch))

    def _post(self, asked: dict[str, object]) -> bytes:
        """The reply's bytes, read only as far as the limit."""
        url, limit = self._settings.url, self._settings.max_kib * 1024
        try:
            with self._client.stream("POST", url, json=asked) as response:
                if response.status_code == 429 or response.status_code >= 500:
                    raise Busy(f"status {response.status_code}")
                if response.status_code != 200:
                    raise RewardError(f"reward {self.name}: {url}: status {response.status_code}; expected 200")
                body = bytearray()
                for piece in response.iter_bytes():
                    body += piece
                    if len(body) > limit:
                        raise RewardError(
                            f"reward {self.name}: {url}: the reply is larger than {self._settings.max_kib} KiB (max_kib)"
                        )
                return bytes(body)
        except httpx.TransportError as error:
            raise Busy(f"{type(error).__name__}: {error}") from error

    def _read(self, body: bytes, expected: int) -> list[float]:
        try:
            scores = Reply.model_validate_json(body).scores
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "reply"
            raise RewardError(
                f'reward {self.name}: {self._settings.url}: {where}: {first["msg"]}; expected {{"scores": [numbers]}}'
            ) from None
        if len(scores) != expected:
            raise RewardError(
                f"reward {self.name}: {self._settings.url}: {len(scores)} scores for {expected} answers; expected one each"
            )
        return scores
