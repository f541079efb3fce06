"""Control frames: encoded messages can be decoded, and malformed ones do no harm."""

import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.errors import CodecError
from tunnel.protocol import control_frames
from tunnel.protocol.control_frames import (
    LEAST,
    EchoReply,
    EchoRequest,
    Message,
    Sample,
    SampleReply,
    decode,
    encode,
)
from tunnel.types import Mac

OURS, THEIRS = Mac.parse("02:00:5e:00:53:01"), Mac.parse("02:00:5e:00:53:02")
NUMBERS = st.integers(0, 2**64 - 1)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(EchoRequest, NUMBERS, NUMBERS),
    st.builds(EchoReply, NUMBERS, NUMBERS, NUMBERS),
    st.builds(Sample, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.binary(max_size=2000)),
    st.builds(SampleReply, NUMBERS, NUMBERS, NUMBERS, NUMBERS),
)
ECHO: dict[str, object] = {"v": 1, "kind": "echo", "id": 7, "port": 8472}


def body_of(message: Message, *, size: int = 0) -> bytes:
    frame = encode(message, vni=1, source=OURS, destination=THEIRS, size=size)
    return frame[control_frames.HEADERS.size :]


def packed(words: object) -> bytes:
    made: bytes = msgpack.packb(words)
    return made.ljust(LEAST, b"\0")


def test_every_byte_of_an_echo() -> None:
    frame = encode(EchoRequest(7, 8472), vni=0x123456, source=OURS, destination=THEIRS)
    assert frame[:22] == bytes.fromhex("08000000 12345600 02005e005302 02005e005301 88b5")
    assert frame[22:] == (
        b"\x84\xa1v\x01\xa4kind\xa4echo\xa2id\x07\xa4port\xcd\x21\x18".ljust(64, b"\0")
    )


@given(MESSAGES, st.integers(0, 9000))
def test_encoded_messages_can_be_decoded(message: Message, size: int) -> None:
    body = body_of(message, size=size)
    assert len(body) >= max(size, LEAST)
    assert decode(body) == message


@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_no_answer_is_larger_than_its_question(a: int, b: int, c: int, d: int) -> None:
    assert len(body_of(EchoReply(a, b, c))) == LEAST
    # The port is our own, and a CRC has 32 bits.
    assert len(body_of(SampleReply(a, b % 2**16, c, d % 2**32))) == LEAST


@pytest.mark.parametrize("words", [{**ECHO, "new": 1, "more": {"a": b""}}, {**ECHO, "new": None}])
def test_keys_that_are_not_known_are_ignored(words: dict[str, Any]) -> None:
    assert decode(packed(words)) == EchoRequest(7, 8472)


@pytest.mark.parametrize("kind", ["later", "", None, 1, b"echo", {}, [], 0.5])
def test_kinds_that_are_not_known_say_nothing(kind: object) -> None:
    assert decode(packed({**ECHO, "kind": kind})) is None


WRONG = {
    "nothing": b"",
    "too short": packed(ECHO)[:-1],
    "zeros": bytes(100),
    "no map": packed("echo"),
    "a list": packed([]),
    "a number": packed(5),
    "cut off": b"\x84\xa1v\x01".ljust(LEAST, b"\xc1"),
    "another version": packed({**ECHO, "v": 2}),
    "no version": packed({"kind": "echo", "id": 7, "port": 8472}),
    "no id": packed({"v": 1, "kind": "echo", "port": 8472}),
    "an id that is true": packed({**ECHO, "id": True}),
    "an id that is less than none": packed({**ECHO, "id": -1}),
    "an id that is text": packed({**ECHO, "id": "7"}),
    "an id that is a map": packed({**ECHO, "id": {}}),
    "a port that is half": packed({**ECHO, "port": 0.5}),
    "data that are text": packed(
        {**ECHO, "kind": "sample", "number": 0, "of": 1, "data": "abc"},
    ),
    "a list inside": packed({**ECHO, "more": [1]}),
    "an extension": packed({**ECHO, "more": msgpack.ExtType(5, b"x")}),
    "a date": packed({**ECHO, "more": msgpack.Timestamp(1)}),
    "long text": packed({**ECHO, "more": "x" * 65}),
    "text that is none": packed({**ECHO, "more": 0}).replace(b"\xa4kind", b"\xa4\xff\xff\xff\xff"),
    "many keys": packed({**ECHO, **dict.fromkeys("abcdefghijklm", 0)}),
    "a key that is a number": packed(ECHO | {"v": 1, 5: 5}),
    "deep": b"\x81\xa1v" * 20_000,
    "a map that promises much": b"\xdf\xff\xff\xff\xff".ljust(LEAST, b"\0"),
    "bytes that promise much": b"\x81\xa1v\xc6\xff\xff\xff\xff".ljust(LEAST, b"\0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_in_one_short_line(case: str) -> None:
    with pytest.raises(CodecError) as caught:
        decode(WRONG[case])
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=3000))
@settings(max_examples=500)
def test_any_bytes_are_a_message_or_nothing_or_refused(body: bytes) -> None:
    check_any(body)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
WORDS = ("v", "kind", "id", "port", "size", "number", "of", "data", "crc")


@given(
    st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=3), VALUES, max_size=9),
    st.sampled_from(["echo", "reply", "sample", "verdict", "other"]),
    st.binary(max_size=40),
)
@settings(max_examples=500)
def test_any_map_is_a_message_or_nothing_or_refused(
    words: dict[str, object], kind: str, behind: bytes
) -> None:
    check_any(packed({"v": 1, "kind": kind, **words}) + behind)
    check_any(packed({**words, "v": 1, "kind": kind}) + behind)


def check_any(body: bytes) -> None:
    try:
        message = decode(body)
    except CodecError:
        return
    if message is not None:
        assert decode(body_of(message)) == message


def test_memory_is_bounded_by_the_input() -> None:
    tracemalloc.start()
    try:
        for body in (*WRONG.values(), b"\x8f" * 60_000, (b"\x81\xa1" + b"k") * 20_000):
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            with pytest.raises(CodecError):
                decode(body)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < 4 << 20
    finally:
        tracemalloc.stop()
