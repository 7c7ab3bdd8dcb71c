"""Optuna's gRPC proxy: a server that ends with its search, and a client that outlives an outage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from optuna.storages import BaseStorage, GrpcStorageProxy
from optuna.storages._grpc.auto_generated import api_pb2_grpc
from optuna.storages._grpc.client import GrpcClientCache
from optuna.storages._grpc.servicer import OptunaStorageProxyService

from lrsearch.errors import InvalidArgumentError

_DEADLINE_SECONDS = 60.0
# Each worker asks with two threads: the trial's, and its lease's.
_SERVER_THREADS = 32
_GRACE_SECONDS = 5.0
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),  # as Optuna's own: a study may be large
    # Left alone, a channel tries less and less often: two minutes late after a long outage.
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 5000),
]


@contextmanager
def serve(storage: BaseStorage, host: str) -> Iterator[int]:
    """Serve a storage to other machines while the body runs, as ``run_grpc_proxy_server`` does.

    Optuna's own runs for ever, and on a port that must be found before it is taken.

    Args:
        storage: of this process.
        host: the address of this machine to listen on, as the others know it. Whoever reaches it
            may read and write: there is no password.

    Yields:
        The port, which answers from now on.

    Raises:
        InvalidArgumentError: if this machine has no such address.
    """
    server = grpc.server(ThreadPoolExecutor(_SERVER_THREADS, thread_name_prefix="lrsearch storage"))
    service = OptunaStorageProxyService(storage)
    api_pb2_grpc.add_StorageServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    try:
        port: int = server.add_insecure_port(f"[{host}]:0" if ":" in host else f"{host}:0")
    except RuntimeError as error:
        raise InvalidArgumentError(
            f"the storage cannot be served at {host!r}, which is no address of this machine: use "
            "one that all machines reach, such as postgresql://USER:PASSWORD@HOST/NAME"
        ) from error
    server.start()
    try:
        yield port
    finally:
        server.stop(_GRACE_SECONDS).wait()


class DeadlineProxy(GrpcStorageProxy):
    """A `GrpcStorageProxy` whose calls end within a minute, and which reconnects within seconds.

    Optuna's own waits for ever for a server whose machine is gone without a word, since its calls
    have no deadline.

    Args:
        host: the server's host.
        port: the server's port.
        deadline: of each call, in seconds; a minute if None.
    """

    def __init__(self, *, host: str, port: int, deadline: float | None = None) -> None:
        self._deadline = _DEADLINE_SECONDS if deadline is None else deadline
        super().__init__(host=host, port=port)

    def _setup(self) -> None:
        channel = grpc.insecure_channel(f"{self._host}:{self._port}", options=_OPTIONS)
        self._channel = grpc.intercept_channel(channel, _Deadline(self._deadline))
        self._stub = api_pb2_grpc.StorageServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._cache = GrpcClientCache(self._stub)


class _Deadline(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Any], details: Any, request: Any
    ) -> Any:
        limited = _Details(
            details.method,
            self._seconds,
            details.metadata,
            details.credentials,
            details.wait_for_ready,
            details.compression,
        )
        return continuation(limited, request)


class _Details(grpc.ClientCallDetails):  # type: ignore[misc]
    def __init__(
        self,
        method: str,
        timeout: float,
        metadata: Any,
        credentials: Any,
        wait_for_ready: Any,
        compression: Any,
    ) -> None:
        self.method = method
        self.timeout = timeout
        self.metadata = metadata
        self.credentials = credentials
        self.wait_for_ready = wait_for_ready
        self.compression = compression
