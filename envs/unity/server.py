"""The server that a player calls, in as few steps as the protocol allows.

gRPC is HTTP/2 frames around messages. A player makes one call at a time over one connection, so
the frames are read and written right here, in the thread that waits for them: no queue and no
second thread between the player's message and the one who acts on it. The library's server
(`grpc_server`) passes each message through three threads, which for a small scene takes longer
than all the rest of a step. A second thread there is, for the time when nobody waits: it answers
the pings of a player that would hang up a minute later, in the middle of a long update.

What calls is named by nobody: headers are skipped unread, as there is one method.
https://www.rfc-editor.org/rfc/rfc9113, https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from queue import Empty, SimpleQueue

from rlgym.errors import WorldError

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS, _PADDED = 0x1, 0x1, 0x4, 0x8
_MOST_DATA = 2**24 - 1  # the largest frame there is
_MOST_WINDOW = 2**31 - 1
_FIRST_WINDOW = 65_535
_RENEW_AFTER = 2**24
"""Bytes after which the connection's window is opened again; it is 128 times as large."""

ATTEND = 1.0
"""Seconds between looks at a connection that nobody reads; gRPC gives a ping sixty."""

_RESPONSE = b"\x88" + b"\x0f\x10\x10application/grpc"  # :status 200, content-type
_TRAILERS = b"\x00\x0bgrpc-status\x010"


_HEAD = struct.Struct(">BHBBI")  # of a frame: its size in two parts, kind, flags, stream


def _frame(kind: int, flags: int, stream: int, payload: bytes | bytearray = b"") -> bytes:
    size = len(payload)
    return _HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


_GREETING = _frame(
    _SETTINGS,
    0,
    0,
    # no table of headers, as none are read; windows and frames as large as they may be
    struct.pack(">HIHIHI", 1, 0, 4, _MOST_WINDOW, 5, _MOST_DATA),
) + _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", _MOST_WINDOW - _FIRST_WINDOW))


class DirectServer:
    """Answers one player on 127.0.0.1.

    Args:
        port: 0 = any that is free.

    Attributes:
        port: the one that it listens on.

    Raises:
        WorldError: the port is taken.
    """

    def __init__(self, port: int = 0) -> None:
        try:
            self._listener = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise WorldError(
                f"port {port} is taken: another trainer waits for the editor there; end it"
            ) from error
        self.port: int = self._listener.getsockname()[1]
        self._listener.settimeout(0.2)  # not every system wakes a thread whose socket is closed
        self._listening = True
        self._arrived: SimpleQueue[_Connection] = SimpleQueue()
        self._strangers: list[_Connection] = []  # connections that have asked for nothing so far
        self._player: _Connection | None = None
        self._early: bytes | None = None
        self._lost: ConnectionError | None = None
        self._lock = threading.Lock()  # around the player's connection
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._accept, daemon=True, name="unity-accept")
        self._thread.start()
        threading.Thread(target=self._attend, daemon=True, name="unity-attend").start()

    def _accept(self) -> None:
        """Greet whoever connects: a player gives up when nobody does within seconds."""
        while self._listening:
            with contextlib.suppress(OSError):
                stream, _ = self._listener.accept()
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                stream.sendall(_GREETING)
                self._arrived.put(_Connection(stream))

    def _attend(self) -> None:
        """Look after the player's connection while nobody else does."""
        while not self._closed.wait(ATTEND):
            if self._player is None or not self._lock.acquire(blocking=False):
                continue
            try:
                if self._early is None and self._player is not None:
                    self._early = self._player.read(0.0)
            except ConnectionError as error:
                self._lost = error
            finally:
                self._lock.release()

    def _stop_listening(self) -> None:
        """Free the port: from here on there is one player, or none."""
        if not self._listening:
            return
        self._listening = False
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # where this wakes the thread, it is quicker
        self._thread.join()
        self._listener.close()
        with contextlib.suppress(Empty):
            while True:
                self._strangers.append(self._arrived.get_nowait())
        for stranger in self._strangers:
            stranger.close()
        self._strangers = []

    def poll(self, seconds: float) -> bytes | None:
        """The player's next message; None if there is none for so long.

        Raises:
            ConnectionError: the player has hung up.
        """
        with self._lock:
            if self._early is not None:
                data, self._early = self._early, None
                return data
            if self._lost is not None:
                raise self._lost
            if self._player is not None:
                return self._player.read(seconds)
        return self._first(seconds)

    def _first(self, seconds: float) -> bytes | None:
        """The first message of whoever turns out to be the player."""
        deadline = time.monotonic() + seconds
        while self._player is None:
            left = deadline - time.monotonic()
            with contextlib.suppress(Empty):
                # with someone there, only look whether another one came
                self._strangers.append(
                    self._arrived.get(block=not self._strangers and left > 0, timeout=max(left, 0))
                )
            for stranger in list(self._strangers):
                try:
                    data = stranger.read(min(0.01, max(left, 0.0)))
                except ConnectionError:
                    self._strangers.remove(stranger)  # someone who only looked at the port
                    stranger.close()
                    continue
                if data is not None:
                    self._player = stranger
                    self._strangers.remove(stranger)
                    self._stop_listening()
                    return data
            if left <= 0:
                return None
        return None

    def ready(self) -> bool:
        """Whether `poll` would return a message, or raise, at once."""
        if self._early is None:
            try:
                self._early = self.poll(0.0)
            except ConnectionError:
                return True
        return self._early is not None

    def reply(self, data: bytes, seconds: float) -> None:
        """Answer the last message.

        Raises:
            ConnectionError: the player has hung up, or does not read for so long.
        """
        with self._lock:
            if self._player is None:
                raise ConnectionError("nobody has asked")
            self._player.write(data, seconds)

    def close(self) -> None:
        """Hang up and free the port."""
        self._closed.set()
        self._stop_listening()
        with self._lock:
            if self._player is not None:
                self._player.close()
                self._player = None


class _Connection:
    """One HTTP/2 connection, of which this is the server's side.

    Args:
        stream: connected, with the greeting sent.
    """

    def __init__(self, stream: socket.socket) -> None:
        self._socket = stream
        self._input = bytearray()
        self._greeted = False
        self._stream = 0  # number of the call that is under way
        self._body = bytearray()
        self._unrenewed = 0
        self._frame_size = 16_384
        self._window = _FIRST_WINDOW  # of the connection
        self._stream_window = 0
        self._new_stream_window = _FIRST_WINDOW

    def close(self) -> None:
        self._socket.close()

    # ------------------------------------------------------------------ reading
    def read(self, seconds: float) -> bytes | None:
        """The next whole message; None if it is not there in time.

        Raises:
            ConnectionError: the other side has hung up, or speaks something else.
        """
        deadline = time.monotonic() + seconds
        while True:
            message = self._parse() if self._input else None
            if message is not None:
                return message
            left = deadline - time.monotonic()
            if not self._receive(max(left, 1e-5)) and left <= 0:
                return None

    def _receive(self, seconds: float) -> bool:
        """Take what has come; False if nothing did."""
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(1 << 18)
        except (TimeoutError, InterruptedError):
            return False
        except OSError as error:
            raise ConnectionResetError(str(error)) from error
        if not data:
            raise ConnectionResetError("the connection was closed")
        self._input += data
        return True

    def _parse(self) -> bytes | None:
        """Take whole frames off the input until a message is complete."""
        data = self._input
        if not self._greeted:
            if not _PREFACE.startswith(bytes(data[: len(_PREFACE)])):
                raise ConnectionAbortedError("the other side does not speak HTTP/2")
            if len(data) < len(_PREFACE):
                return None
            del data[: len(_PREFACE)]
            self._greeted = True
        position, end = 0, len(data)
        message = None
        while message is None and end - position >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, position)
            stop = position + 9 + (high << 16 | low)
            if stop > end:
                break
            stream &= 0x7FFFFFFF
            payload = data[position + 9 : stop]
            position = stop
            if kind == _DATA:
                self._take_data(flags, stream, payload)
            elif kind == _HEADERS:
                self._stream, self._body = stream, bytearray()
                self._stream_window = self._new_stream_window
            else:
                self._take_control(kind, flags, stream, payload)
            if kind in (_DATA, _HEADERS) and flags & _END_STREAM and stream == self._stream:
                message = self._message()
        del data[:position]
        return message

    def _take_data(self, flags: int, stream: int, payload: bytearray) -> None:
        self._unrenewed += len(payload)
        if self._unrenewed >= _RENEW_AFTER:
            self._send(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unrenewed)))
            self._unrenewed = 0
        if stream == self._stream:
            if flags & _PADDED and payload:
                payload = payload[1 : len(payload) - payload[0]]
            self._body += payload

    def _take_control(self, kind: int, flags: int, stream: int, payload: bytearray) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            for name, value in struct.iter_unpack(">HI", payload[: len(payload) // 6 * 6]):
                if name == 4:
                    self._stream_window += value - self._new_stream_window
                    self._new_stream_window = value
                elif name == 5:
                    self._frame_size = value
            self._send(_frame(_SETTINGS, _ACK, 0))
        elif kind == _PING and not flags & _ACK:
            self._send(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW_UPDATE and len(payload) == 4:
            more = int.from_bytes(payload, "big") & 0x7FFFFFFF
            if stream == 0:
                self._window += more
            elif stream == self._stream:
                self._stream_window += more
        elif kind == _RST_STREAM and stream == self._stream:
            raise ConnectionAbortedError("the call was cancelled")
        # the rest changes nothing here: priorities, the end of headers, a farewell (an end follows)

    def _message(self) -> bytes:
        """The message of a call that is complete."""
        body = self._body
        if len(body) < 5 or int.from_bytes(body[1:5], "big") != len(body) - 5:
            raise ConnectionAbortedError("the call holds no message")
        if body[0]:
            raise ConnectionAbortedError("the message is compressed, which was not agreed on")
        return bytes(memoryview(body)[5:])

    # ------------------------------------------------------------------ writing
    def write(self, message: bytes, seconds: float) -> None:
        """Answer the call that is under way.

        Raises:
            ConnectionError: the other side has hung up, or takes nothing for so long.
        """
        stream = self._stream
        head = _frame(_HEADERS, _END_HEADERS, stream, _RESPONSE)
        tail = _frame(_HEADERS, _END_HEADERS | _END_STREAM, stream, _TRAILERS)
        body = b"\0" + struct.pack(">I", len(message)) + message
        if len(body) <= min(self._window, self._stream_window, self._frame_size):
            self._window -= len(body)
            self._stream = 0  # what comes for this call from now on is late
            self._send(head + _frame(_DATA, 0, stream, body) + tail, seconds)
            return
        self._send(head, seconds)
        view = memoryview(body)
        deadline = time.monotonic() + seconds
        while view:
            size = min(len(view), self._window, self._stream_window, self._frame_size)
            if size > 0:
                self._send(_frame(_DATA, 0, stream, bytes(view[:size])), seconds)
                self._window -= size
                self._stream_window -= size
                view = view[size:]
                deadline = time.monotonic() + seconds
                continue
            if time.monotonic() > deadline:
                raise ConnectionAbortedError("the other side does not read")
            self._receive(0.1)  # it tells when it has room again
            self._parse()
        self._stream = 0
        self._send(tail, seconds)

    def _send(self, data: bytes, seconds: float = 5.0) -> None:
        self._socket.settimeout(seconds)
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise ConnectionResetError(str(error) or "the connection is stuck") from error
