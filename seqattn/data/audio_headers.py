"""What an audio file's header promises beyond what the file holds, which libsndfile reads as a shorter recording."""

from dataclasses import dataclass
from typing import BinaryIO, Literal

# sizes that encoders write where they cannot know the length, as into a pipe
_PLACEHOLDERS = (
    *((0, 0), (2**32 - 256, 2**32 - 1), (2**64 - 1, 2**64 - 1)),
    *((0x7FFE0000, 0x80000000), (0x7F000000, 0x7F000010)),  # SoX and arecord, rounded to whole frames
)
_MOST_CHUNKS = 1000
_MP3_TOLERANCE = 0.01  # of the stream: encoders disagree on which frames and tags they count


@dataclass(frozen=True)
class _Chunks:
    """A file of chunks: where the first begins, bytes of a name and a size, and whether a size counts both of them."""

    start: int
    data: bytes  # name of the chunk that holds the samples
    order: Literal["little", "big"] = "little"
    size: int = 4
    counted: bool = False
    align: int = 2


_W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
_FORMATS = {
    b"RIFF": _Chunks(12, b"data"),
    b"RF64": _Chunks(12, b"data"),
    b"RIFX": _Chunks(12, b"data", "big"),
    b"FORM": _Chunks(12, b"SSND", "big"),
    b"caff": _Chunks(8, b"data", "big", size=8, align=1),
    b"riff": _Chunks(40, _W64_DATA, size=8, counted=True, align=8),
}


def missing_bytes(file: BinaryIO) -> int:
    """How many bytes of audio the header of an open file promises beyond the end of the file.

    WAV, RF64, W64, AIFF and CAF are told to the byte, an MP3 with a Xing header where more than 1 % is missing. 0 for
    a whole file, for one of another kind, and for a header without length.
    """
    held = file.seek(0, 2)
    file.seek(0)
    head = file.read(4)
    if head in _FORMATS:
        return _beyond_chunk(file, _FORMATS[head], held)
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        return _beyond_mp3(file, held)
    return 0


def _beyond_chunk(file: BinaryIO, chunks: _Chunks, held: int) -> int:
    place, long = chunks.start, None
    header = len(chunks.data) + chunks.size
    for _ in range(_MOST_CHUNKS):
        file.seek(place)
        head = file.read(header)
        if len(head) < header:
            break
        name, size = head[: len(chunks.data)], int.from_bytes(head[len(chunks.data) :], chunks.order)
        if name == b"ds64":
            long = int.from_bytes(file.read(16)[8:], "little")
        if name == chunks.data:
            promised = size if long is None else long
            if _unknown(promised):
                break
            return max(0, place + (0 if chunks.counted else header) + promised - held)
        place += max(header, size if chunks.counted else header + size)
        place += -place % chunks.align
    return 0


def _unknown(size: int) -> bool:
    return any(low <= size <= high for low, high in _PLACEHOLDERS)


def _beyond_mp3(file: BinaryIO, held: int) -> int:
    """By the Xing or Info header, which lies inside the first frame."""
    file.seek(0)
    tag = file.read(10)
    start = 0
    if tag[:3] == b"ID3" and len(tag) == 10:
        start = 10 + sum(byte << 7 * place for place, byte in enumerate(reversed(tag[6:])))
    file.seek(start)
    frame = file.read(64)
    place = max(frame.find(b"Xing"), frame.find(b"Info"))
    if place < 0:
        return 0
    fields = frame[place + 4 :]
    flags = int.from_bytes(fields[:4], "big")
    if flags & 2 == 0:  # no number of bytes
        return 0
    first = 8 if flags & 1 else 4  # after the number of frames, where there is one
    promised = int.from_bytes(fields[first : first + 4], "big")
    missing = promised - (held - start)
    return missing if missing > _MP3_TOLERANCE * promised else 0
