"""A stand-in for a judge model: an OpenAI-compatible server that counts the words an answer shares with its reference.

python -m recipes.qwen3.judge_server --port 8000

It serves the tiny run, whose models are too small to judge. The judge's whole way is real: requests over HTTP, quoted
texts, a reply that ends with `Score: N`. At scale a language model stands here (see pipeline.yaml).
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_QUOTED = re.compile(r"<(reference|response)-([0-9a-f]{16})>\n(.*?)\n</\1-\2>", re.DOTALL)


def shared_words(response: str, reference: str) -> float:
    """F1 over words, from 0 to 1.

    >>> shared_words("The key is in the box.", "The key is in the box"), shared_words("a b", "b c")
    (1.0, 0.5)
    """
    given, wanted = (Counter(re.findall(r"\w+", text.casefold())) for text in (response, reference))
    common = (given & wanted).total()
    return 2 * common / (given.total() + wanted.total()) if common else 0.0


def grade(message: str) -> str:
    """The reply to a judge's prompt; its last line is `Score: N`, N from 0 to 10."""
    quoted = {name: text for name, _, text in _QUOTED.findall(message)}
    if "reference" not in quoted:
        return "There is no reference to compare with."
    score = shared_words(quoted.get("response", ""), quoted["reference"])
    return f"Compared word by word with the reference.\nScore: {10 * score:.1f}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        message = {"role": "assistant", "content": grade(request["messages"][-1]["content"])}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = json.dumps({"object": "chat.completion", "model": request.get("model"), "choices": [choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Nothing for every request."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    ThreadingHTTPServer((options.host, options.port), _Handler).serve_forever()


if __name__ == "__main__":
    main()
