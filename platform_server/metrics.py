"""What this process counts and times, for Prometheus. What the database knows is in `gauges.py`.

Label values are words of this program: nothing that comes from outside makes a new series.
Names and units: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

import logging
import platform as python_platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)

from platform_server.errors import Unavailable

log = logging.getLogger(__name__)

# When each series began would be as many series again.
disable_created_metrics()  # type: ignore[no-untyped-call]

PROCESS = CollectorRegistry(auto_describe=True)

ProcessCollector(registry=PROCESS)
GCCollector(registry=PROCESS)

BUILD = Info("disk_image_build", "The program that serves.", registry=PROCESS)
BUILD.info({"version": version("disk-image-ci"), "python": python_platform.python_version()})

REQUESTS = Counter(
    "disk_image_http_requests_total",
    "Requests that were answered, by route and HTTP status.",
    ("method", "route", "status"),
    registry=PROCESS,
)
REQUEST_SECONDS = Histogram(
    "disk_image_http_request_seconds",
    "From a request's headers to the end of its answer, by route.",
    ("method", "route"),
    buckets=(0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
    registry=PROCESS,
)
WEBHOOKS = Counter(
    "disk_image_webhook_answers_total",
    "Webhook deliveries that were answered, by the answer's status and reason.",
    ("status", "reason"),
    registry=PROCESS,
)
LIMITED = Counter(
    "disk_image_limited_total",
    "What was refused because a limit was reached, by the limit.",
    ("limit",),
    registry=PROCESS,
)
VERDICTS = Counter(
    "disk_image_verifications_total",
    "Verifications that ended, by result: published, duplicate, no verdict yet, or why it failed.",
    ("result",),
    registry=PROCESS,
)
VERIFICATION_SECONDS = Histogram(
    "disk_image_verification_seconds",
    "How long one attempt to verify an image took, whatever came of it.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600),
    registry=PROCESS,
)
EVENTS = Counter(
    "disk_image_events_total", "Events that were written, by kind.", ("kind",), registry=PROCESS
)
LAST_SWEEP = Gauge(
    "disk_image_last_sweep_timestamp_seconds",
    "When this process last finished each sweep; 0 before the first.",
    ("sweep",),
    registry=PROCESS,
)
for _sweep in ("retention", "secrets", "stuck", "uploads", "manager"):
    LAST_SWEEP.labels(_sweep)
SWEEP_FAILURES = Counter(
    "disk_image_sweep_failures_total", "Sweeps that were cut off by an error.", ("sweep",), registry=PROCESS
)
LOG_LINES = Counter(
    "disk_image_log_lines_total", "Lines that were logged, by level.", ("level",), registry=PROCESS
)

CERTIFICATE_EXPIRES = Gauge(
    "disk_image_certificate_expiry_timestamp_seconds",
    "When the certificate that is served expires; 0 without TLS.",
    registry=PROCESS,
)


@contextmanager
def sweeping(name: str) -> Iterator[None]:
    """Around one sweep: what goes wrong in it is logged and counted, and the next one tries again."""
    try:
        yield
        LAST_SWEEP.labels(name).set_to_current_time()
    except Unavailable as error:
        SWEEP_FAILURES.labels(name).inc()
        log.warning("the %s sweep was cut off: %s", name, error.what)
    except Exception:
        SWEEP_FAILURES.labels(name).inc()
        log.exception("the %s sweep was cut off", name)
