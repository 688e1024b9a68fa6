"""Redis behind every form of its URL: password, TLS, unix socket, Sentinel."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from forcegauge.errors import InputError

AWAY = (redis.ConnectionError, redis.TimeoutError, redis.ReadOnlyError)
"""What is raised while Redis is down, loads its data or changes its master."""


def connect(url: str) -> redis.Redis:
    """A client of the Redis at a URL, which connects when it is first used.

    Raises `InputError` for a URL that is none.
    """
    options: dict[str, Any] = {
        "decode_responses": True,
        "socket_timeout": 5.0,
        "socket_connect_timeout": 2.0,
        "health_check_interval": 30,
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.05), 1),
    }
    if url.startswith("redis+sentinel://"):
        return _behind_sentinels(url, options)
    try:
        return redis.Redis.from_url(url, **options)
    except ValueError:
        raise _no_url() from None


def _behind_sentinels(url: str, options: dict[str, Any]) -> redis.Redis:
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    service, _, database = parts.path.strip("/").partition("/")
    try:
        places = [(host, int(port or 26379)) for host, _, port in map(_split, hosts.split(","))]
        options["db"] = int(database or 0)
    except ValueError:
        raise _no_url() from None
    if not service or not all(host for host, _ in places):
        raise _no_url()
    named = {"username": unquote(user), "password": unquote(password)}
    told = {name: value for name, value in named.items() if value}
    sentinel = Sentinel(places, **options)  # type: ignore[no-untyped-call]
    master: redis.Redis = sentinel.master_for(service, **options, **told)  # type: ignore[no-untyped-call]
    return master


def _split(place: str) -> tuple[str, str, str]:
    return place.partition(":")


def _no_url() -> InputError:
    fix = (
        "Use redis://[user:password@]host:port/0, rediss://..., unix:///path?db=0 or "
        "redis+sentinel://host1,host2/service/0"
    )
    return InputError("that is no Redis URL", field="redis_url", fix=fix)
