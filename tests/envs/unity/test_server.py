"""Both servers answer the library's own client, and the direct one whatever HTTP/2 allows."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from rlgym.envs.unity.grpc_server import GrpcServer
from rlgym.envs.unity.messages import METHOD
from rlgym.envs.unity.server import DirectServer
from rlgym.errors import WorldError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(params=[DirectServer, GrpcServer])
def server(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = request.param()
    yield made
    made.close()


@pytest.fixture
def direct() -> Iterator[DirectServer]:
    made = DirectServer()
    yield made
    made.close()


def client(port: int, requests: list[bytes], **options: Any) -> tuple[threading.Thread, list[Any]]:
    """A thread that makes these calls one after another, and the list its answers go to."""
    answers: list[Any] = []
    unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

    def run() -> None:
        settings = [*unlimited, *options.items()]
        with grpc.insecure_channel(f"127.0.0.1:{port}", settings) as channel:
            call = channel.unary_unary(METHOD)
            for request in requests:
                try:
                    answers.append(call(request, timeout=20))
                except grpc.RpcError as error:
                    answers.append(error.code())
                    return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, answers


# ----- The library's client ----------------------------------------------------------------------


def test_messages_of_every_size_go_both_ways(server: Any) -> None:
    """Past the windows and frames that HTTP/2 begins with, on both sides."""
    sizes = [0, 1, 100, 16_383, 16_384, 65_535, 70_000, 300_000, 5_000_000, 7]
    requests = [bytes([i]) * size for i, size in enumerate(sizes)]
    thread, answers = client(server.port, requests)
    for request in requests:
        assert server.poll(20.0) == request
        server.reply(request[::-1] + b"!", 20.0)
    thread.join(20)
    assert answers == [request[::-1] + b"!" for request in requests]


def test_many_small_messages(server: Any) -> None:
    requests = [str(i).encode() for i in range(300)]
    thread, answers = client(server.port, requests)
    for request in requests:
        assert server.poll(20.0) == request
        server.reply(request, 20.0)
    thread.join(20)
    assert answers == requests


def test_the_window_of_the_connection_is_renewed(direct: DirectServer) -> None:
    """More than the renewal in all; each alone is below it."""
    requests = [bytes(6_000_000)] * 4
    thread, answers = client(direct.port, requests)
    for _ in requests:
        data = direct.poll(20.0)
        assert data is not None and len(data) == 6_000_000
        direct.reply(b"ok", 20.0)
    thread.join(20)
    assert answers == [b"ok"] * 4


def test_there_may_be_nothing_yet(server: Any) -> None:
    assert server.poll(0.05) is None
    assert not server.ready()
    thread, answers = client(server.port, [b"hello"])
    deadline = time.monotonic() + 10
    while not server.ready() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.ready()
    assert server.poll(0.0) == b"hello"
    server.reply(b"there", 5.0)
    thread.join(10)
    assert answers == [b"there"]


def test_closing_tells_the_client(server: Any) -> None:
    thread, answers = client(server.port, [b"a"])
    assert server.poll(10.0) == b"a"
    server.close()
    thread.join(10)
    assert len(answers) == 1 and isinstance(answers[0], (grpc.StatusCode, bytes))


def test_the_port_is_free_once_the_player_is_there(direct: DirectServer) -> None:
    _, answers = client(direct.port, [b"a"])
    assert direct.poll(10.0) == b"a"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", direct.port)) != 0
    direct.reply(b"b", 5.0)
    assert answers in ([], [b"b"])


@pytest.mark.parametrize("kind", [DirectServer, GrpcServer])
def test_a_taken_port_is_named(kind: Callable[[int], Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(WorldError, match=r"is taken"):
            kind(taken.getsockname()[1])


# ----- Frames by hand ----------------------------------------------------------------------------


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def call(message: bytes, stream: int = 1) -> bytes:
    body = b"\0" + struct.pack(">I", len(message)) + message
    return frame(1, 4, stream, b"\x82") + frame(0, 1, stream, body)


def connect(port: int, data: bytes = b"") -> socket.socket:
    made = socket.create_connection(("127.0.0.1", port))
    made.settimeout(10)
    made.sendall(data)
    return made


def frames_from(made: socket.socket, count: int) -> list[tuple[int, int, int, bytes]]:
    """Kind, flags, stream and payload of the next frames that are not the greeting."""
    found, data = [], b""
    while len(found) < count:
        while len(data) < 9 or len(data) < 9 + int.from_bytes(data[:3], "big"):
            more = made.recv(65536)
            assert more, "hung up"
            data += more
        size = int.from_bytes(data[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", data[3:9])
        if not (stream == 0 and kind in (4, 8) and not flags):
            found.append((kind, flags, stream, data[9 : 9 + size]))
        data = data[9 + size :]
    return found


def test_bytes_may_come_one_by_one(direct: DirectServer) -> None:
    with connect(direct.port) as made:
        for byte in PREFACE + frame(4, 0, 0) + call(b"hi"):
            assert direct.poll(0.0) is None
            made.sendall(bytes([byte]))
            time.sleep(0.0005)
        assert direct.poll(5.0) == b"hi"


def test_headers_in_parts_padding_and_pieces(direct: DirectServer) -> None:
    body = b"\0\0\0\0\x06" + b"abcdef"
    data = PREFACE
    data += frame(1, 0, 1, b"\x82") + frame(9, 4, 1, b"\x84")  # headers go on in another frame
    data += frame(2, 0, 1, bytes(5))  # a priority
    data += frame(0, 8, 1, b"\x03" + body[:4] + bytes(3))  # padded
    data += frame(0, 0, 99, b"of a stream that there is not")
    data += frame(77, 0, 0, b"of a kind that there is not")
    data += frame(0, 0, 1, body[4:]) + frame(0, 1, 1)  # an empty one ends it
    with connect(direct.port, data):
        assert direct.poll(5.0) == b"abcdef"


def test_settings_and_pings_are_acknowledged(direct: DirectServer) -> None:
    with connect(direct.port, PREFACE + frame(4, 0, 0) + frame(6, 0, 0, b"12345678")) as made:
        assert direct.poll(0.2) is None
        assert frames_from(made, 2) == [(4, 1, 0, b""), (6, 1, 0, b"12345678")]


def test_a_ping_is_answered_while_nobody_reads(direct: DirectServer) -> None:
    """A player waits through an update of minutes; gRPC hangs up on a ping without an answer."""
    with connect(direct.port, PREFACE + call(b"one")) as made:
        assert direct.poll(5.0) == b"one"
        made.sendall(frame(6, 0, 0, b"12345678"))
        assert frames_from(made, 1) == [(6, 1, 0, b"12345678")]
        direct.reply(b"x", 5.0)
        assert frames_from(made, 3)[1][3] == b"\0\0\0\0\x01x"


def test_a_message_that_comes_while_nobody_reads_is_kept(direct: DirectServer) -> None:
    made = connect(direct.port, PREFACE + call(b"one"))
    assert direct.poll(5.0) == b"one"
    direct.reply(b"x", 5.0)
    made.sendall(call(b"two", stream=3))
    time.sleep(1.5)  # until the second thread has looked
    assert direct._early == b"two"
    assert direct.ready()
    made.close()
    time.sleep(1.5)
    assert direct.poll(5.0) == b"two"
    with pytest.raises(ConnectionError):
        direct.poll(5.0)


def test_the_reply_is_headers_data_and_status(direct: DirectServer) -> None:
    with connect(direct.port, PREFACE + call(b"hi", stream=3)) as made:
        assert direct.poll(5.0) == b"hi"
        direct.reply(b"there", 5.0)
        headers, data, trailers = frames_from(made, 3)
    assert headers == (1, 4, 3, b"\x88\x0f\x10\x10application/grpc")
    assert data == (0, 0, 3, b"\0\0\0\0\x05there")
    assert trailers == (1, 5, 3, b"\x00\x0bgrpc-status\x010")


def test_a_small_window_is_respected(direct: DirectServer) -> None:
    settings = frame(4, 0, 0, struct.pack(">HI", 4, 10))  # ten bytes a stream
    with connect(direct.port, PREFACE + settings + call(b"hi")) as made:
        assert direct.poll(5.0) == b"hi"
        writer = threading.Thread(target=direct.reply, args=(b"0123456789abcde", 5.0))
        writer.start()
        acknowledged, headers, first = frames_from(made, 3)
        assert (acknowledged[0], headers[0]) == (4, 1)
        assert first[3] == b"\0\0\0\0\x0f01234"
        assert writer.is_alive()
        made.sendall(frame(8, 0, 1, struct.pack(">I", 100)))
        second, trailers = frames_from(made, 2)
        assert second[3] == b"56789abcde" and trailers[1] == 5
        writer.join(5)


def test_a_client_that_reads_nothing_is_given_up(direct: DirectServer) -> None:
    settings = frame(4, 0, 0, struct.pack(">HI", 4, 0))
    with connect(direct.port, PREFACE + settings + call(b"hi")):
        assert direct.poll(5.0) == b"hi"
        with pytest.raises(ConnectionError, match="does not read"):
            direct.reply(b"hello", 0.2)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (frame(3, 0, 3, bytes(4)), "cancelled"),
        (frame(1, 4, 3) + frame(0, 1, 3, b"\0\0\0\0\x09abc"), "holds no message"),
        (frame(1, 4, 3) + frame(0, 1, 3, b"\x01\0\0\0\x03abc"), "compressed"),
        (frame(1, 5, 3), "holds no message"),
        (None, "closed|reset"),
    ],
)
def test_a_player_that_breaks_the_rules_is_lost(
    direct: DirectServer, data: bytes | None, text: str
) -> None:
    made = connect(direct.port, PREFACE + call(b"hi"))
    assert direct.poll(5.0) == b"hi"
    direct.reply(b"there", 5.0)
    if data is None:
        made.close()
    elif data[3] == 3:  # a call that has begun is cancelled
        made.sendall(frame(1, 4, 3) + data)
    else:
        made.sendall(data)
    with pytest.raises(ConnectionError, match=text):
        direct.poll(5.0)
    made.close()


def test_strangers_do_not_keep_the_player_out(direct: DirectServer) -> None:
    """Someone who looks at the port, speaks something else, or says nothing at all."""
    connect(direct.port).close()
    web = connect(direct.port, b"GET / HTTP/1.1\r\n\r\n")
    quiet = connect(direct.port)
    assert direct.poll(0.3) is None
    thread, answers = client(direct.port, [b"player"])
    assert direct.poll(10.0) == b"player"
    direct.reply(b"ok", 5.0)
    thread.join(10)
    assert answers == [b"ok"]
    web.close()
    quiet.close()
