# SPDX-License-Identifier: Apache-2.0
"""Raw sockets: requests byte by byte, answers as bytes, and leaving in every manner."""

import socket
import struct
import time


class RawConnection:
    def __init__(self, host, port, timeout=30):
        self.socket = socket.create_connection((host, port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.host = host
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, data):
        self.socket.sendall(data.encode() if isinstance(data, str) else data)

    def send_request(self, method, path, body=b"", headers=()):
        """A well-formed request; headers are whole lines without their ends."""
        lines = [f"{method} {path} HTTP/1.1", "Host: test", *headers]
        if body or method == "POST":
            lines.append(f"Content-Length: {len(body)}")
            if not any(line.lower().startswith("content-type:") for line in lines):
                lines.append("Content-Type: application/json")
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def _fill(self):
        data = self.socket.recv(65536)
        self.buffer += data
        return bool(data)

    def read_until(self, mark):
        while mark not in self.buffer:
            if not self._fill():
                raise ConnectionError(f"closed before {mark!r}: {self.buffer[:300]!r}")
        head, self.buffer = self.buffer.split(mark, 1)
        return head + mark

    def read_exactly(self, n):
        while len(self.buffer) < n:
            if not self._fill():
                raise ConnectionError(f"closed after {len(self.buffer)} of {n} bytes")
        data, self.buffer = self.buffer[:n], self.buffer[n:]
        return data

    def read_head(self):
        """Status and headers (lower-case names) of the next answer."""
        lines = self.read_until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        return status, {name.lower(): value for name, value in headers.items()}

    def read_answer(self, head_only=False):
        """Status, headers and body of the next answer, which has a Content-Length."""
        status, headers = self.read_head()
        length = 0 if head_only else int(headers.get("content-length", 0))
        return status, headers, self.read_exactly(length)

    def is_closed(self, seconds):
        """Whether the peer ends the connection within so many seconds (what it sends is kept)."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                if not self._fill():
                    return True
            except (TimeoutError, socket.timeout):
                return False
            except ConnectionError:
                return True
        return False

    def send_last(self, data):
        """Sends and half-closes; the end comes in the last bytes' own packet."""
        self.socket.sendall(data, socket.MSG_MORE)
        self.half_close()

    def half_close(self):
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self):
        """Leaves with RST rather than FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self):
        self.socket.close()
