"""Whether bytes that come without a type are a media file, by how they begin."""

MAGIC = (b"ID3", b"fLaC", b"OggS", b"\x1aE\xdf\xa3", b"FORM", b"caff", b".snd", b"#!AMR", b"RF64", b"0&\xb2u", b"RIFF")
"""How files begin that may come without a Content-Type of their own; 1A45DFA3 is Matroska and WebM, 3026B275 ASF."""
MP3_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MP3_KBPS_LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
"""Layer III bit rates of MPEG 1, and of MPEG 2 and 2.5 (ISO 11172-3 and 13818-3)."""


def is_media(data: bytes) -> bool:
    """Whether bytes begin like a media file: by its magic number, or by two frames of MP3 or AAC in a row."""
    if data.startswith(MAGIC) or data[4:8] == b"ftyp":
        return True
    if data[:1] == data[188:189] == data[376:377] == b"G":  # packets of MPEG-TS
        return True
    length = _frame_length(data[:6])
    return length > 0 and _frame_length(data[length : length + 6]) > 0


def _frame_length(head: bytes) -> int:
    """Return the length of the MP3 (layer III) or AAC (ADTS) frame that begins so, or 0 if none does."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3  # 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    if layer == 0:
        return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5 if head[1] & 0xF0 == 0xF0 else 0
    rate, speed = head[2] >> 4, head[2] >> 2 & 3
    if layer != 1 or version == 1 or not 0 < rate < 15 or speed == 3:
        return 0
    hertz = (44100, 48000, 32000)[speed] >> {3: 0, 2: 1, 0: 2}[version]
    kbps = (MP3_KBPS if version == 3 else MP3_KBPS_LOW)[rate - 1]
    return (144 if version == 3 else 72) * kbps * 1000 // hertz + (head[2] >> 1 & 1)
