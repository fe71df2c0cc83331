"""The W&B server: which one, which key, does it answer, what did it commit. Needs no wandb client."""

from __future__ import annotations

import base64
import configparser
import contextlib
import json
import netrc
import os
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROBE_S = 2.0
ANSWER_S = 10.0
CLOUD = "https://api.wandb.ai"
_AT_ONCE = 20  # runs of one query


class Unreachable(Exception):
    """The server cannot be used now; the message says why in a few words. The caller turns it into a status."""


@dataclass(frozen=True, slots=True)
class Held:
    """Of a run: `lines` of its history, names of the `tables` (artifacts) that the server committed."""

    lines: int = 0
    tables: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Server:
    """Where to upload. `key` is "" where none is at hand; it is never shown."""

    url: str
    key: str = field(repr=False)

    def probe(self) -> str:
        """The key's own entity. Raises Unreachable within 2 s: no key, no network, no answer, key refused."""
        if not self.key:
            raise Unreachable("no API key: set WANDB_API_KEY, or log in with `wandb login`")
        found: list[str | Unreachable] = []

        def ask() -> None:
            try:
                viewer = self._query("query Viewer{viewer{id username entity}}", PROBE_S).get("viewer")
                found.append(viewer["entity"] if viewer else Unreachable(f"{self.url} does not accept the API key"))
            except Unreachable as error:
                found.append(error)

        # In a thread: a name that no server resolves can hang for much longer than any time-out of a socket.
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(PROBE_S)
        answer = found[0] if found else Unreachable(f"{self.url} did not answer within {PROBE_S:g} s")
        if isinstance(answer, Unreachable):
            raise answer
        return answer

    def held(self, entity: str, project: str, ids: Iterable[str], *, tries: int = 3) -> dict[str, Held]:
        """What the server has of each run. Raises Unreachable.

        Asked again for a moment where nothing is there: a commit may take effect a little after its answer.
        """
        rest = list(ids)
        found: dict[str, Held] = {}
        for attempt in range(tries):
            time.sleep(0.5 * attempt)
            for start in range(0, len(rest), _AT_ONCE):
                found |= self._held(entity, project, rest[start : start + _AT_ONCE])
            rest = [run for run in rest if not found[run].tables]
            if not rest:
                break
        return found

    def _held(self, entity: str, project: str, ids: list[str]) -> dict[str, Held]:
        fields = "historyLineCount outputArtifacts(first:100){edges{node{state artifactSequence{name}}}}"
        runs = " ".join(f'r{i}:run(name:"{run}"){{{fields}}}' for i, run in enumerate(ids))
        query = (
            f"query RunTables($entity:String!,$project:String!){{project(entityName:$entity,name:$project){{{runs}}}}}"
        )
        answer = self._query(query, ANSWER_S, {"entity": entity, "project": project}).get("project") or {}
        found = {}
        for i, run in enumerate(ids):
            about = answer.get(f"r{i}") or {}
            nodes = [edge["node"] for edge in (about.get("outputArtifacts") or {}).get("edges") or []]
            tables = {node["artifactSequence"]["name"] for node in nodes if node["state"] == "COMMITTED"}
            found[run] = Held(about.get("historyLineCount") or 0, frozenset(tables))
        return found

    def _query(self, query: str, seconds: float, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables or {}}).encode()
        login = base64.b64encode(f"api:{self.key}".encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {login}"}
        request = urllib.request.Request(f"{self.url}/graphql", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                found = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            error.close()
            refused = error.code in (401, 403)
            why = "does not accept the API key" if refused else f"answers with HTTP {error.code}"
            raise Unreachable(f"{self.url} {why}") from None
        except (OSError, ValueError) as error:
            raise Unreachable(f"{self.url} is out of reach: {getattr(error, 'reason', error)}") from None
        data = found.get("data") if isinstance(found, dict) else None
        if not isinstance(data, dict):
            raise Unreachable(f"{self.url} refuses a query: {str(found)[:200]}")
        return data


def find(environment: Mapping[str, str], home: Path) -> Server:
    """The server and key that the user's own `wandb login` would use: environment, then files in `home`."""
    url = environment.get("WANDB_BASE_URL") or _configured(environment, home) or CLOUD
    url = url.rstrip("/")
    return Server(url, environment.get("WANDB_API_KEY") or _netrc(environment, home, url))


def _configured(environment: Mapping[str, str], home: Path) -> str:
    folder = Path(environment.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb")
    parser = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read(folder / "settings", "utf8")
        return parser.get("default", "base_url", fallback="")
    return ""


def _netrc(environment: Mapping[str, str], home: Path, url: str) -> str:
    names = [environment["NETRC"]] if environment.get("NETRC") else [home / ".netrc", home / "_netrc"]
    for name in names:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            found = netrc.netrc(os.fspath(name)).authenticators(urllib.parse.urlsplit(url).hostname or "")
            if found and found[2]:
                return found[2]
    return ""
