"""Files that hold less audio than their header promises."""

import io
from pathlib import Path

import numpy as np
import pytest

from seqattn.data.audio import audio_info, read_audio
from seqattn.data.audio_headers import missing_bytes
from seqattn.errors import SeqattnError

sf = pytest.importorskip("soundfile")
KINDS = [
    *(("WAV", "PCM_16", None), ("WAV", "FLOAT", None), ("WAV", "PCM_16", "BIG"), ("WAVEX", "PCM_24", None)),
    *(("RF64", "PCM_16", None), ("W64", "PCM_16", None), ("AIFF", "PCM_16", None), ("CAF", "PCM_16", None)),
]


def encoded(format: str, subtype: str | None, endian: str | None = None, samples: int = 16_001) -> bytes:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (samples, 3 if format != "MP3" else 1))
    file = io.BytesIO()
    sf.write(file, noise, 16_000, format=format, subtype=subtype, endian=endian)
    return file.getvalue()


@pytest.mark.parametrize(("format", "subtype", "endian"), KINDS)
def test_missing_bytes_are_counted(format: str, subtype: str, endian: str | None) -> None:
    whole = encoded(format, subtype, endian)
    assert missing_bytes(io.BytesIO(whole)) == 0
    assert missing_bytes(io.BytesIO(whole + b"a tag behind the audio")) == 0
    cut = 3000 + len(whole) - len(whole.rstrip(b"\0"))
    lost = missing_bytes(io.BytesIO(whole[:-cut]))
    assert cut - 64 <= lost <= cut  # what follows the audio counts for nothing
    assert missing_bytes(io.BytesIO(whole[: -cut - 7])) == lost + 7


@pytest.mark.parametrize("format", ["FLAC", "OGG"])
def test_other_kinds_are_left_to_their_decoders(format: str) -> None:
    assert missing_bytes(io.BytesIO(encoded(format, None)[:9000])) == 0


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"RIFF\x04\0\0\0WAVE", b"text" * 99, b"ID3", b"RIFF" + bytes(99_999)]
)
def test_what_has_no_audio_promises_nothing(content: bytes) -> None:
    assert missing_bytes(io.BytesIO(content)) == 0


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0xFFFFFFDB, 0x7FFFF000, 0x7FFFFFFF, 0x80000000])
def test_sizes_of_streams_are_no_promise(tmp_path: Path, size: int) -> None:
    content = bytearray(encoded("WAV", "PCM_16"))
    place = content.index(b"data") + 4
    content[place : place + 4] = size.to_bytes(4, "little")
    assert missing_bytes(io.BytesIO(content)) == 0
    (tmp_path / "piped.wav").write_bytes(content)
    if size:  # with 0, libsndfile finds no samples
        assert read_audio(tmp_path / "piped.wav")[0].shape == (3, 16_001)


def test_an_rf64_stream_is_no_promise() -> None:
    content = bytearray(encoded("RF64", "PCM_16"))
    place = content.index(b"ds64") + 16
    for size in (0, 2**64 - 1):
        content[place : place + 8] = size.to_bytes(8, "little")
        assert missing_bytes(io.BytesIO(content[:9000])) == 0


@pytest.mark.parametrize("tag", [b"", b"ID3\x03\x00\x00\x00\x01\x64\x00" + bytes((1 << 14) + (100 << 7))])
def test_a_cut_mp3_is_told_by_its_xing_header(tag: bytes) -> None:
    whole = encoded("MP3", None)
    assert missing_bytes(io.BytesIO(tag + whole)) == 0
    assert missing_bytes(io.BytesIO(tag + whole + b"TAG" + bytes(125))) == 0
    assert missing_bytes(io.BytesIO((tag + whole)[:-1000])) == pytest.approx(1000, abs=50)
    assert missing_bytes(io.BytesIO((tag + whole).replace(b"Xing", b"none").replace(b"Info", b"none")[:-1000])) == 0


@pytest.mark.parametrize("suffix", ["wav", "mp3", "aiff"])
def test_a_file_cut_short_is_refused_in_one_sentence(tmp_path: Path, suffix: str, capfd) -> None:
    path = tmp_path / f"a.{suffix}"
    whole = encoded(suffix.upper(), None)
    path.write_bytes(whole[: len(whole) // 2])
    for read in (audio_info, read_audio, lambda path: read_audio(path, 10, 20)):
        with pytest.raises(SeqattnError, match=rf"a\.{suffix} is cut short \(its header promises \d+ bytes more than"):
            read(path)
    assert capfd.readouterr().err == ""
