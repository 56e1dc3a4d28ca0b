"""Sessions of ssh: as many as the engine's client opens, over as many connections as they need."""

from __future__ import annotations

import threading
from typing import Any


class Sessions:
    """In place of docker-py's single connection to a machine.

    Each request that is under way, and each stream, is a session. A server allows few per connection: ten unless
    MaxSessions in sshd_config(5) says otherwise.
    """

    def __init__(self, adapter: Any) -> None:
        """``adapter``: docker-py's for ``ssh://``, which is connected; from now on it uses these."""
        self._adapter = adapter
        self._url = f"ssh://{adapter.ssh_host}"
        self._clients = [adapter.ssh_client]
        self._connecting = threading.Lock()
        adapter.ssh_client = self
        adapter.pools.clear()  # they hold the connection

    def get_transport(self) -> Sessions:
        """What docker-py opens sessions with."""
        return self

    def open_session(self) -> Any:
        """A session over the first connection that has room, or over another. Raises what paramiko raises."""
        from paramiko import ChannelException  # of the extra [ssh], without which nobody comes here

        with self._connecting:
            for client in self._clients:
                try:
                    return client.get_transport().open_session()
                except ChannelException:
                    continue
            self._adapter._create_paramiko_client(self._url)  # docker-py has no other way to connect again
            client = self._adapter.ssh_client
            self._adapter.ssh_client = self
            client.connect(**self._adapter.ssh_params)
            self._clients.append(client)
            return client.get_transport().open_session()

    def close(self) -> None:
        """Close every connection."""
        for client in self._clients:
            client.close()
