"""A server that starts a process of its own: ``python http_child.py PORT [END_AFTER_S]`` answers /health."""

from __future__ import annotations

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from os import _exit


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        if self.path == "/end":
            print("told to end", flush=True)
            threading.Timer(0.05, _exit, [3]).start()

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    print(f"child {child.pid}", flush=True)
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
