"""`disk-image platform serve` as a process that is killed, and what it is told first."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from platform_server.state_folder import now
from tests.platform_server.api import Api, Pipeline
from tests.platform_server.images import Images
from tests.platform_server.made import Made
from tests.platform_server.verifying import POLICY


def prepare(api: Api, images: Images) -> Pipeline:
    """A node platform that takes these images, and a webhook."""
    fields = {"name": "debian", "trusted_registries": [images.server.host], **POLICY}
    api.post("/node_platforms", {"node_platform": fields})
    hook = api.post("/disk_image_webhooks", {"label": "pipeline"})
    return Pipeline(api.client, now, hook["webhook_id"], hook["webhook_secret"])


class Served:
    """`disk-image platform serve` as a process of its own."""

    def __init__(self, made: Made, images: Images, workers: int = 1) -> None:
        self._command = [
            sys.executable, "-m", "pipelines", "platform", "serve", *made.argv, "--port", "0",
            "--json", "--plain-http", "--trust", str(images.forge.trust.path),
            "--workers", str(workers),
        ]  # fmt: skip
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> None:
        """Until it answers."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert self._process.stdout is not None
        self.url = json.loads(self._process.stdout.readline())["url"]

    def kill(self) -> None:
        """With SIGKILL."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        if self._process is not None:
            self._process.communicate()
