"""A provider for `gusset secret rotate`: keys of a service with an HTTP API. Standard library only.

    gusset secret rotate search_api_key \\
        --with "python http_api.py --url https://api.example/v1/keys --token-file /run/secrets/admin_token"

It sends `POST URL` to make a key, with the rotation's id as `Idempotency-Key`, and `DELETE URL/ID` to revoke
one. The handle is the key's id.
"""

import argparse
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import quote

parser = argparse.ArgumentParser()
parser.add_argument("--url", required=True)
parser.add_argument("--token-file", required=True, type=Path)
arguments = parser.parse_args()
request = json.load(sys.stdin)


def send(method: str, url: str, **headers: str) -> bytes:
    headers["Authorization"] = "Bearer " + arguments.token_file.read_text().strip()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, method=method, headers=headers), timeout=20
        ) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        if method == "DELETE" and error.code == 404:
            return b""  # it is revoked already
        print(f"{method} {url}: HTTP {error.code}", file=sys.stderr)
        sys.exit(75 if error.code in (429, 502, 503, 504) else 1)
    except OSError as error:
        print(f"{method} {url}: {error}", file=sys.stderr)
        sys.exit(75)


if request["step"] == "create":
    headers = {"Idempotency-Key": request["rotation"]}
    made = json.loads(send("POST", arguments.url, **headers))
    print(json.dumps({"value": made["key"], "handle": made["id"]}))
elif request["step"] == "revoke":
    send("DELETE", f"{arguments.url}/{quote(request['handle'], safe='')}")
    print("{}")
else:
    sys.exit(64)
