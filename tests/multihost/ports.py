"""A port for a coordinator that is yet to start."""

from __future__ import annotations

import socket


def reserve() -> tuple[socket.socket, str]:
    """A socket that keeps a free port of this machine from everybody but those who share ports, and its address.

    gRPC, by which the processes of jax find each other, asks to share. While the socket is open, nobody else is given
    the port; and since it does not listen, all connections are the coordinator's.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(("127.0.0.1", 0))
    return holder, f"127.0.0.1:{holder.getsockname()[1]}"
