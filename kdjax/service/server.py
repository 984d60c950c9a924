"""Runs the service on uvicorn: connections with time limits, and an orderly end."""

import asyncio
import gc
import logging
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kdjax.service.app import App

STOP_WAIT = 1.5  # seconds for requests after a signal
CONNECTIONS = 1000  # at once; further ones are refused with 503


def serve_until_signal(app: App, listening: socket.socket) -> None:
    """Serves an application until SIGTERM or SIGINT."""
    # A row's objects live until its entity's next row: the collector would scan all of them
    # repeatedly, which took a seventh of the time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    seconds = app.limits.seconds

    class Protocol(H11Protocol):
        """Closes connections with no complete request, or no answer read, for seconds."""

        _late: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            idle = self.cycle is None or self.cycle.response_complete
            super().data_received(data)
            if idle and not self.transport.is_closing():
                self._wait()

        def connection_lost(self, error: Exception | None) -> None:
            super().connection_lost(error)
            for timer in filter(None, (self._late, self._unread)):
                timer.cancel()

        def pause_writing(self) -> None:
            """The answer exceeds the buffer."""
            super().pause_writing()
            self._unread = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread:
                self._unread.cancel()

        def _wait(self) -> None:
            if self._late is None:
                self._late = self.loop.call_later(seconds, self._look)

        def _look(self) -> None:
            self._late = None
            if self.transport.get_write_buffer_size():
                self.transport.abort()  # `close` would wait for the client
            elif self.cycle is None or self.cycle.response_complete:
                self.transport.close()
            else:
                self._wait()

    class Server(uvicorn.Server):
        """Ends with exit code 0 after a signal, and ends open requests."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            self.should_exit = True

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.end()
            await super().shutdown(sockets)

    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app.asgi,
        http=Protocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=int(seconds),
        timeout_graceful_shutdown=STOP_WAIT,  # type: ignore[arg-type]
    )
    Server(config).run(sockets=[listening])
