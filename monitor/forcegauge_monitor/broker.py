"""The Celery application: how tasks travel, and what happens when a worker or Redis dies."""

from __future__ import annotations

import base64
import json
import logging
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from kombu.exceptions import OperationalError
from kombu.transport import redis as transports
from kombu.transport import virtual

from forcegauge_monitor.connection import AWAY
from forcegauge_monitor.records import Snapshot
from forcegauge_monitor.settings import Settings

logger = logging.getLogger(__name__)

PREFIX = "forcegauge:celery:"
"""Before all of Celery's keys, so that a Redis can be shared."""

BEGIN, PIECE, END = 6, 3, 0
"""Priorities, 0 the highest: what was begun is ended before the next is begun."""

SCORES = "scores"
"""The queue of checkpoints to be scored."""

STEPS = [END, PIECE, BEGIN]


class Credit(transports.QoS):
    """Gives a message's credit back also where Redis dies before the message is acknowledged.

    A worker without credit reads no more, and so does not even notice that its connection is gone
    (kombu 5.7): it would stand still for ever. The message itself comes again.
    """

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message."""
        try:
            super().ack(delivery_tag)  # type: ignore[no-untyped-call]
        except AWAY:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]
            raise

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give a message back, or drop it."""
        try:
            super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call]
        except AWAY:
            virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call]
            raise


# a transport of our own could not be named by every form of a URL
transports.Channel.QoS = Credit


def make_app(settings: Settings) -> Celery:
    """An application without tasks. It reads JSON alone, and acknowledges what is done, not what
    is begun: what a dead worker held comes back."""
    url, options = transport(settings.broker_url or settings.redis_url)
    app = Celery("forcegauge", broker=url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_default_queue=settings.queue,
        task_publish_retry_policy={"max_retries": 20, "interval_step": 0.2, "interval_max": 3},
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_redirect_stdouts=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "global_keyprefix": PREFIX,
            "visibility_timeout": settings.visibility_seconds,
            # what lost workers held is looked for every ten seconds, by one worker at a time, and a
            # worker that is killed meanwhile does not keep the others from it for long
            "unacked_mutex_expire": 30,
            "unacked_restore_throttle": 1,
            "priority_steps": STEPS,
            # so that an autoscaler can name the lists: QUEUE, QUEUE:3, QUEUE:6
            "sep": ":",
            "queue_order_strategy": "priority",
            "socket_connect_timeout": 5,
            "socket_timeout": 30,
            "socket_keepalive": True,
            **options,
        },
    )
    if url.startswith("rediss://"):
        app.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    return app


def transport(url: str) -> tuple[str, dict[str, Any]]:
    """A Redis URL as Celery writes it, and the transport's options that go with it."""
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    login = f"{login}@" if login else ""
    if parts.scheme == "unix":
        number = dict(pair.split("=", 1) for pair in parts.query.split("&") if "=" in pair)
        return f"redis+socket://{login}{parts.path}?virtual_host={number.get('db', 0)}", {}
    if parts.scheme == "redis+sentinel":
        service, _, database = parts.path.strip("/").partition("/")
        each = [f"sentinel://{login}{host}/{database or 0}" for host in hosts.split(",")]
        return ";".join(each), {"master_name": service}
    return url, {}


def send(app: Celery, snapshot: Snapshot) -> None:
    """Have a worker begin a snapshot, or go on with one that nobody works on."""
    app.send_task(
        "forcegauge.start",
        (snapshot.run, snapshot.id),
        queue=snapshot.queue,
        priority=BEGIN,
        retry=False,
    )


def submit(app: Celery) -> Callable[[Snapshot], None]:
    """A function that hands a snapshot to the workers; where that fails, the sweep does it."""

    def handed(snapshot: Snapshot) -> None:
        try:
            send(app, snapshot)
        except OperationalError as error:
            logger.warning("%s/%s will be sent later (%s)", snapshot.run, snapshot.id, error)

    return handed


def waiting(app: Celery, queue: str) -> list[list[Any]]:
    """Arguments of the messages that no worker has taken yet; none for what is no message."""
    found: list[list[Any]] = []
    with app.connection_for_read() as connection:
        channel = connection.default_channel
        with channel.conn_or_acquire() as client:
            for step in STEPS:
                # to this command kombu (5.7) gives no prefix
                key = f"{PREFIX}{channel._q_for_pri(queue, step)}"
                found += [_arguments(text) for text in client.lrange(key, 0, -1)]
    return found


def _arguments(message: bytes) -> list[Any]:
    try:
        found = json.loads(base64.b64decode(json.loads(message)["body"]))[0]
    except (ValueError, KeyError, TypeError, IndexError):
        return []
    return found if isinstance(found, list) else []
