"""Peers that a baseline needs, each in an environment of its own under `build/`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DISTILABEL = Path(__file__).parent.parent / "build" / "distilabel"


def install_distilabel() -> Path:
    """Return the interpreter of distilabel's own environment, made on first use."""
    python, mark = DISTILABEL / "bin" / "python", DISTILABEL / ".installed-with-minhash"
    if not mark.exists():
        print("installing distilabel 1.5.3 into build/distilabel ...", flush=True)
        environment = {k: v for k, v in os.environ.items() if k != "PIP_CONSTRAINT"}
        subprocess.run([sys.executable, "-m", "venv", str(DISTILABEL)], check=True)
        # It imports requests without naming it.
        packages = ["distilabel[openai,minhash]==1.5.3", "requests"]
        install = [str(python), "-m", "pip", "install", "-qq", *packages]
        subprocess.run(install, check=True, env=environment)
        mark.touch()
    return python
