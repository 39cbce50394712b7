"""DNG files, the smallest that LibRaw opens: 64 x 64 raw pixels and a preview."""

import io
import struct

CODES = {1: "B", 2: "s", 3: "H", 4: "I", 5: "II", 10: "ii"}  # by the type of a TIFF field


def directory(fields, offset):
    """A TIFF directory that lies at this offset of the file, with its long values behind it. fields: {tag: (type, values)}."""
    entries, values = struct.pack("<H", len(fields)), b""
    end = offset + len(entries) + 12 * len(fields) + 4
    for tag, (kind, content) in sorted(fields.items()):
        flat = [number for value in content for number in (value if isinstance(value, tuple) else (value,))]
        packed = content if kind == 2 else struct.pack(f"<{len(flat)}{CODES[kind][0]}", *flat)
        if len(packed) > 4:
            packed, values = struct.pack("<I", end + len(values)), values + packed + b"\0" * (len(packed) % 2)
        entries += struct.pack("<HHI", tag, kind, len(content)) + packed.ljust(4, b"\0")
    return entries + bytes(4) + values


def write_dng(path, preview, orientation=1, is_jpeg=True):
    """preview: a picture in RGB, as the camera stores it; orientation: EXIF's, of the DNG."""
    file = io.BytesIO()
    if is_jpeg:
        preview.save(file, "JPEG", quality=95)
    data = file.getvalue() if is_jpeg else preview.tobytes()
    side, raw_at, data_at = 64, 8, 8 + 2 * 64 * 64
    directory_at = data_at + len(data) + len(data) % 2
    width, height = preview.size
    preview_fields = {
        254: (4, [1]), 256: (4, [width]), 257: (4, [height]), 258: (3, [8, 8, 8]), 259: (3, [7 if is_jpeg else 1]),
        262: (3, [6 if is_jpeg else 2]), 273: (4, [data_at]), 277: (3, [3]), 278: (4, [height]), 279: (4, [len(data)]),
    }  # fmt: skip
    below = directory(preview_fields, directory_at)
    unit = [(1, 1), (0, 1), (0, 1), (0, 1), (1, 1), (0, 1), (0, 1), (0, 1), (1, 1)]
    fields = {
        254: (4, [0]), 256: (4, [side]), 257: (4, [side]), 258: (3, [16]), 259: (3, [1]), 262: (3, [32803]),
        271: (2, b"Maker\0"), 272: (2, b"Camera\0"), 273: (4, [raw_at]), 274: (3, [orientation]), 277: (3, [1]),
        278: (4, [side]), 279: (4, [2 * side * side]), 330: (4, [directory_at]), 33421: (3, [2, 2]),
        33422: (1, [0, 1, 1, 2]), 50706: (1, [1, 4, 0, 0]), 50708: (2, b"Maker Camera\0"), 50717: (4, [65535]),
        50721: (10, unit), 50728: (5, [(1, 1)] * 3), 50778: (3, [21]),
    }  # fmt: skip
    start = directory_at + len(below)
    pixels = struct.pack("<H", 1000) * side * side
    parts = (struct.pack("<2sHI", b"II", 42, start), pixels, data.ljust(directory_at - data_at, b"\0"), below)
    path.write_bytes(b"".join(parts) + directory(fields, start))
