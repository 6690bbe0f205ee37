"""Bytes that two parsers may read as different requests, from RFC 9112 and the known ways of request smuggling.

`answered` is the number of requests that a server should answer; `refused` says whether it should then end the
connection with an error. Where h11, a strict parser, reads the bytes differently, `differs` quotes the RFC.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Vector:
    name: str
    data: bytes
    answered: int = 1
    refused: bool = False
    differs: str = ""


HOST = b"Host: a\r\n"
GET = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"
INNER = b"GET /inner HTTP/1.1\r\nHost: a\r\n\r\n"


def post(fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"POST /embed HTTP/" + version + b"\r\n" + HOST + fields + b"\r\n" + body


def sized(fields: bytes, body: bytes) -> bytes:
    return post(b"Content-Length: %d\r\n" % len(body) + fields, body)


def chunked(body: bytes, fields: bytes = b"", coding: bytes = b"chunked") -> bytes:
    return post(b"Transfer-Encoding: " + coding + b"\r\n" + fields, body)


JAVA = (
    b"Connection: Upgrade, HTTP2-Settings\r\n"
    b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"
    b"Upgrade: h2c\r\n"
)
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
APACHE = b"Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n"

VALID = [
    Vector("get", GET),
    Vector("post", sized(b"", b"hello")),
    Vector("no body", sized(b"", b"")),
    Vector("post without a length", post(b"")),
    Vector("body of a get", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc" + GET, 2),
    Vector("pipelined", GET * 5, 5),
    Vector("pipelined bodies", (sized(b"", b"one") + chunked(b"3\r\ntwo\r\n0\r\n\r\n") + GET) * 3, 9),
    Vector("empty lines in a body", sized(b"", b"\r\n\r\n" + INNER + b"\r\n\r\n") + GET, 2),
    Vector("chunks", chunked(b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\n") + GET, 2),
    Vector("empty lines in chunks", chunked(b"4\r\n\r\n\r\n\r\n2\r\n\r\n\r\n0\r\n\r\n") + GET, 2),
    Vector("a request in a chunk", chunked(b"%x\r\n%s\r\n0\r\n\r\n" % (len(INNER), INNER)) + GET, 2),
    Vector("trailers", chunked(b"1\r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n") + GET, 2),
    Vector("leading zeros", chunked(b"0005\r\nhello\r\n000\r\n\r\n") + GET, 2),
    Vector("capitals", chunked(b"A\r\n0123456789\r\n0\r\n\r\n", coding=b"Chunked") + GET, 2),
    Vector("chunk extensions", chunked(b'1;a;b=c;d="e"\r\nx\r\n0;f=g\r\n\r\n') + GET, 2),
    Vector("expect", sized(b"Expect: 100-continue\r\n", b"hello") + GET, 2),
    Vector("close, then more", sized(b"Connection: close\r\n", b"x") + GET),
    Vector("HTTP/1.0, then more", b"GET / HTTP/1.0\r\n\r\n" + GET),
    Vector("absolute form", b"GET http://a/info HTTP/1.1\r\nHost: b\r\n\r\n" + GET, 2),
    Vector("java", sized(JAVA, b'{"inputs": "a"}') + GET, 2),
    Vector("java, chunks", chunked(b"5\r\nhello\r\n0\r\n\r\n", JAVA) + GET, 2),
    Vector("java, second", GET + sized(JAVA, INNER) + GET, 3),
    Vector("java, get", b"GET / HTTP/1.1\r\nHost: a\r\n" + JAVA + b"\r\n" + GET, 2),
    Vector("websocket", b"GET / HTTP/1.1\r\nHost: a\r\n" + WEBSOCKET + b"\r\n" + GET, 2),
    Vector("websocket with a request as its body", sized(WEBSOCKET, INNER) + GET, 2),
    Vector("apache", sized(APACHE, INNER) + GET, 2),
    Vector("several protocols", sized(b"Connection: upgrade\r\nUPGRADE: h2c, TLS/1.2\r\n", INNER) + GET, 2),
    Vector("two upgrades", sized(b"Connection: upgrade\r\nUpgrade: a\r\nupgrade: b\r\n", INNER) + GET, 2),
    Vector("upgrade without connection", sized(b"Upgrade: h2c\r\n", INNER) + GET, 2),
    Vector("empty lines first", b"\r\n\r\n" + GET, differs="a server SHOULD ignore an empty line (2.2)"),
    Vector("empty lines between", GET + b"\r\n" + GET, 2, differs="a server SHOULD ignore an empty line (2.2)"),
]

TWO_FRAMES = [
    Vector("CL.TE", chunked(b"0\r\n\r\n" + INNER, b"Content-Length: 4\r\n"), 0, True, "MAY be refused (6.1)"),
    Vector("TE.CL", sized(b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 0, True, "MAY be refused (6.1)"),
    Vector("two lengths", post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello!"), 0, True),
    Vector("a length twice", sized(b"Content-Length: 5\r\n", b"hello"), 0, True, "MAY be refused (6.3)"),
    Vector("a list of lengths", post(b"Content-Length: 5, 5\r\n", b"hello"), 0, True, "MAY be refused (6.3)"),
    Vector("a list of two", post(b"Content-Length: 5, 6\r\n", b"hello!"), 0, True),
    Vector("a signed length", post(b"Content-Length: +5\r\n", b"hello"), 0, True),
    Vector("a negative length", post(b"Content-Length: -5\r\n", b"hello"), 0, True),
    Vector("a hex length", post(b"Content-Length: 0x5\r\n", b"hello"), 0, True),
    Vector("an underscored length", post(b"Content-Length: 1_0\r\n", b"0123456789"), 0, True),
    Vector("an empty length", post(b"Content-Length: \r\n", b"hello"), 0, True),
    Vector("a huge length", post(b"Content-Length: 18446744073709551621\r\n", b"hello"), 0, True, "beyond 64 bits"),
    Vector("te gzip", chunked(b"0\r\n\r\n", coding=b"gzip"), 0, True),
    Vector("te gzip, chunked", chunked(b"0\r\n\r\n", coding=b"gzip, chunked"), 0, True),
    Vector("te chunked, gzip", chunked(b"0\r\n\r\n", coding=b"chunked, gzip"), 0, True),
    Vector("te twice", chunked(b"0\r\n\r\n", b"Transfer-Encoding: chunked\r\n"), 0, True),
    Vector("te on two lines", chunked(b"0\r\n\r\n", b"Transfer-Encoding: chunked\r\n", b"gzip"), 0, True),
    Vector("te identity", chunked(b"hello", coding=b"identity"), 0, True),
    Vector("te xchunked", chunked(b"0\r\n\r\n", coding=b"xchunked"), 0, True),
    Vector("te chunked with a parameter", chunked(b"0\r\n\r\n", coding=b"chunked;q=1"), 0, True),
    Vector("te quoted", chunked(b"0\r\n\r\n", coding=b'"chunked"'), 0, True),
    Vector("te and a vertical tab", chunked(b"0\r\n\r\n", coding=b"\x0bchunked"), 0, True),
    Vector("te in HTTP/1.0", post(b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"1.0"), 0, True, "faulty (6.1)"),
    Vector("space before the colon", post(b"Content-Length : 5\r\n", b"hello"), 0, True),
    Vector("te, space before the colon", post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"), 0, True),
    Vector("upgrade, space before the colon", sized(b"Connection: upgrade\r\nUpgrade : h2c\r\n", INNER), 0, True),
]

LINES = [
    Vector("obs-fold", post(b"X: y\r\n z\r\nContent-Length: 0\r\n"), 0, True, "MUST be refused or joined (5.2)"),
    Vector("a folded te", post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"), 0, True, "as obs-fold"),
    Vector("a space before the first field", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 0, True),
    Vector("bare LF", b"GET / HTTP/1.1\nHost: a\n\n", 0, True, "MAY be taken for CRLF (2.2)"),
    Vector("bare LF of a field", b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 0, True, "MAY be taken for CRLF (2.2)"),
    Vector("bare LF ends the head", b"GET / HTTP/1.1\r\nHost: a\r\n\n", 0, True, "MAY be taken for CRLF (2.2)"),
    Vector("bare CR in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n", 0, True),
    Vector("bare CR between fields", b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", 0, True),
    Vector("bare CR ends the head", b"GET / HTTP/1.1\r\nHost: a\r\n\rX: y\r\n\r\n", 0, True),
    Vector("NUL in a value", b"GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n", 0, True),
    Vector("no name", b"GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n", 0, True),
    Vector("no colon", b"GET / HTTP/1.1\r\nHost: a\r\nXY\r\n\r\n", 0, True),
    Vector("a space in a name", b"GET / HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n", 0, True),
    Vector("HTTP/0.9", b"GET /\r\n\r\n", 0, True),
    Vector("HTTP/0.9 by number", b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 0, True, "a version of its own"),
    Vector("HTTP/2.0", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 0, True, "another major version (2.3)"),
    Vector("HTTP/1.2", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 0, True, "SHOULD be read as 1.1; llhttp does not know it"),
    Vector("http/1.1", b"GET / http/1.1\r\nHost: a\r\n\r\n", 0, True),
    Vector("a lower-case method", b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 0, True, "of methods we know those of llhttp"),
    Vector("a space in the target", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 0, True),
    Vector("two spaces", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", differs="MAY be taken for one (3)"),
    Vector("preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0, True, "another major version (2.3)"),
    Vector("connect", b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n" + INNER, 0, True, "no tunnel is made here"),
    Vector("a fault after two", GET * 2 + b"GET /\r\n\r\n", 2, True),
    Vector("a fault behind a body", sized(b"", b"hello") + b"\0" + GET, 1, True),
]

CHUNKS = [
    Vector("no hex", chunked(b"x\r\nhello\r\n0\r\n\r\n"), 0, True),
    Vector("0x", chunked(b"0x5\r\nhello\r\n0\r\n\r\n"), 0, True),
    Vector("signed", chunked(b"+5\r\nhello\r\n0\r\n\r\n"), 0, True),
    Vector("negative", chunked(b"-1\r\nhello\r\n0\r\n\r\n"), 0, True),
    Vector("a space first", chunked(b" 5\r\nhello\r\n0\r\n\r\n"), 0, True),
    Vector("a space behind", chunked(b"5 \r\nhello\r\n0\r\n\r\n"), 0, True, "no whitespace in the grammar (7.1)"),
    Vector("too large", chunked(b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"), 0, True, "beyond 64 bits"),
    Vector("a space in an extension", chunked(b"5; a\r\nhello\r\n0\r\n\r\n"), 0, True, "bad whitespace (7.1.1)"),
    Vector("longer than said", chunked(b"3\r\nhello\r\n0\r\n\r\n"), 0, True),
    Vector("no size", chunked(b"\r\nhello\r\n0\r\n\r\n"), 0, True),
    Vector("bare LF behind a size", chunked(b"5\nhello\r\n0\r\n\r\n"), 0, True),
    Vector("bare LF behind a chunk", chunked(b"5\r\nhello\n0\r\n\r\n"), 0, True),
    Vector("bare CR behind a size", chunked(b"5\rhello\r\n0\r\n\r\n"), 0, True),
    Vector("bare LF in an extension", chunked(b"5;a\nhello\r\n0\r\n\r\n"), 0, True),
    Vector(
        "bare CR in an extension", chunked(b"5;a\rb\r\nhello\r\n0\r\n\r\n"), 0, True, "no CR in the grammar (7.1.1)"
    ),
    Vector("bare LF ends", chunked(b"0\r\n\n" + GET), 0, True, "MAY be taken for CRLF (2.2)"),
    Vector("a trailer without a colon", chunked(b"0\r\nXY\r\n\r\n"), 0, True),
    Vector("a trailer that is folded", chunked(b"0\r\nX: y\r\n z\r\n\r\n"), 0, True, "as obs-fold"),
]

VECTORS = [*VALID, *TWO_FRAMES, *LINES, *CHUNKS]
