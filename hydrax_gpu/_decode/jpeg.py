"""What a JPEG file says of itself before it is decoded: the twin of `hx_jpeg_scan` in `kernels/jpeg.cpp`."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Header", "scan"]


class Header(NamedTuple):
    """What stands before the first scan; sizes are those of the stored picture, in pixels."""

    width: int
    height: int
    components: int
    precision: int
    """Bits of a sample."""
    frame: int
    """Number of the frame header's marker: 0xC0 baseline, 0xC1 extended, 0xC2 progressive; others are rare."""
    orientation: int
    """EXIF orientation, 1 to 8; 1 if there is none."""
    profile: int
    """Whether there is an ICC profile."""
    begin: int
    """Where the first scan's data begin."""
    complete: int
    """Whether the file has its end marker behind that."""
    scans: int
    """Number of scans; counted in progressive files only, 1 otherwise."""


def scan(data: bytes | memoryview) -> Header | None:
    """Reads the markers of a JPEG file; None when it is none, or ends before its first scan.

    Markers and segments are those of ITU-T T.81, Annex B; the orientation is tag 0x0112 of the first TIFF directory of
    the first EXIF segment.
    """
    data = bytes(data)
    size = len(data)
    if size < 4 or data[:2] != b"\xff\xd8":
        return None
    at, frame, orientation, profile = 2, 0, 0, 0
    width = height = components = precision = 0
    while True:
        while at < size and data[at] != 0xFF:
            at += 1
        while at < size and data[at] == 0xFF:
            at += 1
        if at + 3 > size:
            return None
        marker = data[at]
        at += 1
        if marker in (0, 1) or 0xD0 <= marker <= 0xD8:  # these have no length
            continue
        if marker == 0xD9:
            return None
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > size:
            return None
        body = data[at + 2 : at + length]
        at += length
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if len(body) < 6 or frame:
                return None
            frame, precision, components = marker, body[0], body[5]
            height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
        elif marker == 0xE1 and not orientation and len(body) >= 14 and body[:6] == b"Exif\0\0":
            orientation = _orientation(body[6:])
        elif marker == 0xE2 and body[:12] == b"ICC_PROFILE\0":
            profile = 1
        elif marker == 0xDA:
            if not frame:
                return None
            break
    complete = int(data.rfind(b"\xff\xd9", at) >= 0)
    scans = 1 + data.count(b"\xff\xda", at) if frame == 0xC2 else 1
    return Header(
        width, height, components, precision, frame, orientation or 1, profile, at, complete, scans
    )  # fmt: skip


def _orientation(tiff: bytes) -> int:
    if tiff[:2] not in (b"II", b"MM"):
        return 1
    order = "little" if tiff[:2] == b"II" else "big"

    def u16(at: int) -> int:
        return int.from_bytes(tiff[at : at + 2], order)

    first = int.from_bytes(tiff[4:8], order)
    if u16(2) != 42 or first < 8 or first + 2 > len(tiff):
        return 1
    for entry in range(first + 2, first + 2 + 12 * u16(first), 12):
        if entry + 12 > len(tiff):
            return 1
        if u16(entry) == 0x0112:
            value = u16(entry + 8)
            return value if u16(entry + 2) == 3 and 1 <= value <= 8 else 1
    return 1
