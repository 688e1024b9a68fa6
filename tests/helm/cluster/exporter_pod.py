"""Serves what a recorded run showed, one scrape's text after the other: runs in a pod."""

import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

PAGES = sorted(Path(sys.argv[1]).glob("*.prom"))
SECONDS = float(sys.argv[2])
"""Each page is shown so long, the last one for good."""
BEGAN = time.monotonic()


class Handler(BaseHTTPRequestHandler):
    """Answers any path with the page of this moment."""

    def do_GET(self) -> None:
        place = int((time.monotonic() - BEGAN) / SECONDS)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(PAGES[min(place, len(PAGES) - 1)].read_bytes())


HTTPServer(("0.0.0.0", 9790), Handler).serve_forever()
