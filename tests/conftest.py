"""Settings of every test: no telemetry, no hub, one torch thread, nothing in the home."""

from __future__ import annotations

import os
import tempfile

from hypothesis import settings

from flows.settings import configure_libraries

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PREFECT_HOME", tempfile.mkdtemp(prefix="prefmill-tests-"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
configure_libraries()

# On a shared machine a slow example is no defect.
settings.register_profile("prefmill", deadline=None)
settings.load_profile("prefmill")
