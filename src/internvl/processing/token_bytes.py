"""The bytes of a token as SentencePiece, and what follows its ways, writes it.

Knows single tokens; no vocabulary.
"""

from __future__ import annotations

import re

BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"


def piece_bytes(token: str) -> bytes:
    """What the token adds to a text: a byte token its byte, any other its characters, with spaces as such."""
    if byte := BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace(SPACE, " ").encode(errors="replace")
