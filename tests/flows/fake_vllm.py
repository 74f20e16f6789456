"""Stands in for vLLM's server: the same command line, a child process, its logs, and of its answers
those on health, models and adapters; one called `refused` it refuses.

The model's name says what it does: `good`; `bad` ends with an error; `deaf` never answers;
`fleeting` ends soon after its first answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

options = dict(part.removeprefix("--").split("=", 1) for part in sys.argv[1:] if "=" in part)
model = options["model"]


served = [options["served-model-name"]]
if "lora-modules" in options:
    served.append(json.loads(options["lora-modules"])["name"])
loads = "--enable-lora" in sys.argv and "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in os.environ


class Answers(BaseHTTPRequestHandler):
    def answer(self, status, body):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def do_GET(self):
        models = {"data": [{"id": name} for name in served]}
        known = {"/health": {}, "/v1/models": models}
        self.answer(200 if self.path in known else 404, known.get(self.path, {}))
        if model == "fleeting":
            threading.Timer(0.1, os._exit, [3]).start()

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/v1/load_lora_adapter" or not loads:
            self.answer(404, {"detail": "Not Found"})
        elif asked["lora_name"] == "refused":
            self.answer(500, {"error": {"message": "rank 64 is greater than max_lora_rank"}})
        elif asked["lora_name"] in served:
            self.answer(400, {"error": {"message": "it has already been loaded"}})
        else:
            sys.stdout.write(f"loaded {asked['lora_path']}\n")
            sys.stdout.flush()
            served.append(asked["lora_name"])
            self.answer(200, "Success")

    def log_message(self, *_):
        pass


(scratch := Path(os.environ["TMPDIR"])).joinpath("socket").touch()
sys.stdout.write(f"scratch {scratch}\n")
sys.stdout.flush()
subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)", *sys.argv[1:]])
if model == "bad":
    sys.exit("(EngineCore pid=7) ERROR 11-21 13:20:07 [core.py:1] ValueError: no such model")
if model == "deaf":
    time.sleep(600)
HTTPServer(("127.0.0.1", int(options["port"])), Answers).serve_forever()
