"""Requests to one server with OpenAI's API, and what its answers mean when something is wrong.

Only that server is asked: no proxy of the environment is used and no redirection is followed. The key is read from its
environment variable when a client is made; it is in no message, not even in what a server says of it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from harness.core.capability import Endpoint
from harness.core.foreign import quoted
from harness.errors import RunError, did_you_mean

URL = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?(?:/[A-Za-z0-9._~/-]*)?")
"""Without a user, a password or a query, all of which may hold secrets."""
CONNECT_S = 10.0
RETRIED = (429, 502, 503, 504)
"""Too many requests, and a gateway or a server that is not ready."""
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
MAX_SAID = 300
HIDDEN = "(the key)"


class RefusedRequestError(RunError):
    """The server answered that it does not take this request; ``status`` is the code of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class OpenAIClient:
    """A client for one server. Every method raises RunError, with the reason, if the server gives no answer to use."""

    def __init__(self, endpoint: Endpoint, timeout_s: float = 600.0, retries: int = 3, at_once: int = 1) -> None:
        """``timeout_s`` limits the wait for an answer. Raises RunError if the variable of the key is not set."""
        from urllib3 import PoolManager, Retry, Timeout

        self.endpoint = endpoint
        self._timeout_s, self._tries = timeout_s, retries + 1
        self._key = key_of(endpoint)
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        again = Retry(
            total=retries,
            status_forcelist=RETRIED,
            allowed_methods=None,
            backoff_factor=BACKOFF_S,
            backoff_max=LONGEST_BACKOFF_S,
            raise_on_status=False,
        )
        waiting = Timeout(connect=min(CONNECT_S, timeout_s), read=timeout_s)
        self._pool = PoolManager(maxsize=at_once, block=True, retries=again, timeout=waiting, headers=headers)

    def models(self) -> dict[str, Mapping[str, Any]]:
        """What the server says of each of its models, by name."""
        listed = self._asked("GET", "/v1/models")
        entries = listed.get("data")
        if not isinstance(entries, list) or not all(
            isinstance(e, dict) and isinstance(e.get("id"), str) for e in entries
        ):
            raise RunError(f"{self._url('/v1/models')} lists no models as OpenAI's API does: {self._said(listed)}")
        return {entry["id"]: entry for entry in entries}

    def served(self) -> Mapping[str, Any]:
        """What the server says of the endpoint's model. Raises RunError, with those that it has, if it lacks it."""
        models, name = self.models(), self.endpoint.model
        if name not in models:
            near = did_you_mean(name, models) if models else "; it serves none"
            raise RunError(f"{self.endpoint.url} serves no model {quoted(name)}{near}")
        return models[name]

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """The answer to a request for the endpoint's model. Raises RefusedRequestError for a code 4xx or 501."""
        return self._asked("POST", path, {"model": self.endpoint.model, **body})

    def choice(self, path: str, **body: Any) -> dict[str, Any]:
        """The first choice of the answer to a completion."""
        answer = self.post(path, **body)
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise RunError(f"{self._url(path)} answers without choices: {self._said(answer)}")
        return choices[0]

    def metrics_url(self) -> str | None:
        """Where the server shows its counters; None if it does not."""
        from urllib3.exceptions import HTTPError

        url = self._url("/metrics")
        try:
            shown = self._pool.request("GET", url, redirect=False, retries=False)
        except HTTPError:
            return None
        return url if shown.status == 200 and b"# TYPE " in shown.data else None

    def close(self) -> None:
        self._pool.clear()

    def _asked(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        from urllib3.exceptions import HTTPError

        url = self._url(path)
        try:
            sent = None if body is None else json.dumps(body).encode()
            answer = self._pool.request(method, url, body=sent, redirect=False)
        except HTTPError as error:
            raise RunError(f"{url}: {self._no_answer(error)}") from None  # whose chain shows the request's headers
        if answer.status != 200:
            self._refuse(url, answer.status, answer.data)
        try:
            found = json.loads(answer.data)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RunError(f"{url} answers with something that is not OpenAI's API: {self._said(answer.data)}")
        return found

    def _refuse(self, url: str, status: int, data: bytes) -> None:
        said = self._said(data)
        if status in (401, 403):
            variable = self.endpoint.api_key_env
            advice = (
                f"the key in {variable} is not the server's"
                if variable
                else "name the environment variable that holds the key, by api_key_env"
            )
            raise RunError(f"{url} refuses access (HTTP {status}): {advice}: {said}")
        if status in RETRIED or (status >= 500 and status != 501):
            raise RunError(f"{url} fails (HTTP {status}, {self._tries} times): {said}")
        raise RefusedRequestError(f"{url} refuses the request (HTTP {status}): {said}", status)

    def _no_answer(self, error: BaseException) -> str:
        from urllib3 import exceptions

        reason = getattr(error, "reason", None) or error
        tries = f", tried {self._tries} times" if self._tries > 1 else ""
        if isinstance(reason, exceptions.NameResolutionError):
            return f"there is no host of this name{tries}"
        if isinstance(reason, exceptions.ReadTimeoutError):
            return f"no answer within {self._timeout_s:g} s{tries}; raise timeout, or ask for less at once"
        if isinstance(reason, exceptions.NewConnectionError):
            return f"nothing listens there{tries}; start the server, or correct the url"
        if isinstance(reason, exceptions.ConnectTimeoutError):
            return f"no connection{tries}; is the server running, and is its host the right one?"
        return without_key(f"no answer{tries}: {type(reason).__name__}: {reason}", self._key)[:MAX_SAID]

    def _url(self, path: str) -> str:
        return self.endpoint.url + path

    def _said(self, answer: bytes | dict[str, Any]) -> str:
        """What a server said, in quotes and without the key."""
        text = answer.decode("utf-8", errors="replace") if isinstance(answer, bytes) else json.dumps(answer)
        return quoted(without_key(text, self._key), MAX_SAID)


def canonical(url: str) -> str:
    """The base of an API, however it was written: without ``/v1`` and without a slash at its end."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def key_of(endpoint: Endpoint, variables: Mapping[str, str] = os.environ) -> str | None:
    """The key of a server; None if it needs none. Raises RunError if its variable is not set."""
    if endpoint.api_key_env is None:
        return None
    key = variables.get(endpoint.api_key_env, "").strip()
    if not key:
        raise RunError(f"the environment variable {endpoint.api_key_env}, which holds the server's key, is not set")
    return key


def without_key(text: str, key: str | None) -> str:
    """A text that is to be shown, before it is shortened: a part of the key would not be recognized as such."""
    return text.replace(key, HIDDEN) if key else text


def numbers(values: Sequence[Any]) -> bool:
    """Whether all are finite numbers that may be logarithms of probabilities."""
    return all(isinstance(each, int | float) and -1e30 < each <= 1e-6 for each in values)
