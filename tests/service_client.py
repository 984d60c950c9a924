"""Requests to the service without a network, for its tests."""

import asyncio
import time

import httpx
import numpy as np

TOKEN = "a-token-of-more-than-16"
BEARER = {"authorization": f"Bearer {TOKEN}"}
URL = "/v1/detectors/plant/rows"
JSON = {"content-type": "application/json"}


class Client:
    """Requests to an application, without a network."""

    def __init__(self, app, engines):
        self.engines, self.app = engines, app
        self._runner = asyncio.Runner()
        transport = httpx.ASGITransport(app.asgi, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://plant")

    def request(self, method, url, **options):
        return self._runner.run(self._client.request(method, url, **options))

    def get(self, url, **options):
        return self.request("GET", url, **options)

    def post(self, url, **options):
        return self.request("POST", url, **options)

    def run(self, work):
        return self._runner.run(work)

    def close(self):
        if not self.engines:
            return
        self._runner.run(self._client.aclose())
        self._runner.close()
        for engine in self.engines.values():
            engine.close()
        self.engines = {}


def rows_of(count, seed=0):
    return (2 * np.random.default_rng(seed).normal(size=(count, 2))).tolist()


def answered(response):
    assert response.status_code == 200, response.text
    return response.json()


def keys(answers):
    names = ("score", "window_score", "alarm", "state")
    return [tuple(row[name] for name in names) for row in answers]


def sent(client, values, first, last, *, names="abc", **more):
    """Rows `first` to `last` of each entity in one request."""
    lines = [(name, n) for n in range(first, last) for name in names]
    body = {
        "rows": [values[name][n] for name, n in lines],
        "entity": [name for name, _ in lines],
        "time": [n for _, n in lines],
    }
    return answered(client.post(URL, json=body | more))["rows"]


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
