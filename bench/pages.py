"""The size and the time of the manager's pages with many secrets: python bench/pages.py"""

from __future__ import annotations

import gzip
import statistics
import time

import httpx
from servers import EMAIL, PASSWORD, Server, manager_on, scratch

MANY = 10_000


def main() -> None:
    with scratch() as folder, manager_on("SQLite", folder) as server:
        measure(server)


def measure(server: Server) -> None:
    with server.client() as admin:
        for start in range(0, MANY, 1000):
            batch = [{"name": f"secret_{number}", "value": "v" * 20} for number in range(start, start + 1000)]
            admin.post("/v1/secrets:batch", json={"secrets": batch}).raise_for_status()
    with httpx.Client(base_url=server.address, trust_env=False, timeout=60) as person:
        form = person.get("/signin").text
        csrf = form.partition('name="csrf" value="')[2].partition('"')[0]
        data = {"email": EMAIL, "password": PASSWORD, "csrf": csrf}
        person.post("/signin", data=data)
        print(f"\n### Pages at {MANY:,} secrets\n")
        print("| what | bytes | median ms |\n|---|---:|---:|")
        for what, path in (
            ("the page of secrets", "/settings/secrets"),
            ("its page 100", "/settings/secrets?page=100"),
            ("filtered", "/settings/secrets?q=999"),
            ("the audit log", "/settings/audit"),
        ):
            times = []
            for _ in range(30):
                began = time.perf_counter()
                response = person.get(path)
                times.append(time.perf_counter() - began)
            assert response.status_code == 200, response.status_code
            print(f"| {what} | {len(response.content):,} | {statistics.median(times) * 1000:.1f} |")
        page = person.get("/settings/secrets").text
        static = {part.partition('"')[0] for part in page.split('="/static/')[1:]}
        sizes = [len(gzip.compress(person.get(f"/static/{name}").content)) for name in static]
        print(f"| scripts, styles and the icon, compressed, once | {sum(sizes):,} | |")


if __name__ == "__main__":
    main()
