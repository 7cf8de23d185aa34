"""What a file that is no readable picture is, by its first bytes, for the line that says so."""

from __future__ import annotations

NEEDS = {
    "HEIC": "the package pillow-heif",
    "JPEG XL": "the package pillow-jxl-plugin",
    "AVIF": "Pillow 11.3 or newer",
}
"""Pictures of kinds that a package teaches Pillow."""
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_STARTS = {
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"8BPS": "a file of Photoshop",
    b"%PDF": "a PDF",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"DDS ": "a DDS texture",
    b"gimp xcf": "a file of GIMP",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x1aE\xdf\xa3": "a film (Matroska)",
    b"version https://git-lfs": "a pointer of Git LFS (git lfs pull fetches the picture)",
}


def file_kind(data: bytes) -> str | None:
    """The kind of a file, a key of NEEDS or words for it; None where nobody knows."""
    for start, kind in _STARTS.items():
        if data.startswith(start):
            return kind
    if data[4:8] == b"ftyp":
        brands = data[8:12] + data[16:64]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        if any(brand in brands for brand in _HEIC) or data[8:12] in (b"mif1", b"msf1"):
            return "HEIC"
        return "a raw picture of Canon" if data[8:12] == b"crx " else "a film (MP4)"
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "a web page (a download that failed?)"
    if b"<svg" in head:
        return "an SVG drawing"
    return None
