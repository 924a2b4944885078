"""A port for a server of one's own on this machine."""

import socket


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens at. It is not held: somebody else may take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
