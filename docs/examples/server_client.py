"""A client of `eri serve`, with nothing but Python's standard library.

Start the server first: `eri serve engines/demo`. It prints its address, which may be given here.
"""

import base64
import json
import sys
import urllib.request
from pathlib import Path

address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"


def ask(path: str, body: dict | None = None) -> dict:
    """Sends a request and returns the answer: a GET, or a POST if there is a body."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(address + path, data, headers)  # noqa: S310 http alone
    with urllib.request.urlopen(request) as answer:  # noqa: S310
        return json.load(answer)


models = [model["id"] for model in ask("/v1/models")["data"]]
print("models:", ", ".join(models))

body = {"model": models[0], "prompt": "a red heart", "n": 2, "seed": 0, "steps": 8}
reply = ask("/v1/images/generations", body)

folder = Path("out/examples")
folder.mkdir(parents=True, exist_ok=True)
for number, picture in enumerate(reply["data"]):
    file = folder / f"served-{number}.png"
    file.write_bytes(base64.b64decode(picture["b64_json"]))
    print(file)
