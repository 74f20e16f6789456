"""Settings of every test: no telemetry, no hub, one torch thread."""

from __future__ import annotations

import os

from flows.settings import configure_libraries

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
configure_libraries()
