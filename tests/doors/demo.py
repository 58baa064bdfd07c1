"""One ``ctmr demo --json``: what it left, and how it is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctmr.system.home import Home

PROTOCOL = "paired_volume_hu"


@dataclass
class Demo:
    """What one ``ctmr demo --json`` left."""

    home: Home
    tree: dict[str, Any]
    environment: dict[str, str]

    def summary(self, stage: str) -> dict[str, Any]:
        """The summary of a stage."""
        found: dict[str, Any] = self.tree["stages"][stage]["summary"]
        return found

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run ctmr in this demo's home."""
        return subprocess.run(
            [sys.executable, "-m", "ctmr.cli", *words], env=self.environment, capture_output=True, text=True
        )


def run_demo(root: Path, *settings: str) -> Demo:
    """Run the demo in a home of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {"CTMR_HOME": str(root)}
    demo = Demo(Home(root), {}, environment)
    done = demo.command("demo", "--json", *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode == 0, done.stderr[-3000:]
    demo.tree = json.loads(done.stdout)
    return demo
