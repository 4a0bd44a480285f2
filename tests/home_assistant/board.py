"""A JBD board behind a TCP serial server, whose answers the checks can change while it serves.

The frames are captures of real boards; what is made from them gets its checksum by the encoder below, which knows
nothing of the bridge's.
"""

import asyncio
from contextlib import suppress

TOTALS, CELLS, NAME, COUNTERS = 0x03, 0x04, 0x05, 0xAA

# Where in the totals a value stands, two bytes each.
VOLTAGE, CURRENT, PROTECTIONS = 0, 2, 16
# And those of one byte.
MOSFETS, CELL_COUNT = 20, 21

NO_SUCH_REGISTER = 0x80


def answer(register: int, data: bytes, status: int = 0) -> bytes:
    """An answer's frame. Its checksum covers status, length and data, and not the register."""
    body = bytes([status, len(data)]) + data
    checksum = -sum(body) & 0xFFFF
    return bytes([0xDD, register]) + body + checksum.to_bytes(2) + b"\x77"


def data_of(frame: bytes) -> bytes:
    return frame[4:-3]


def with_words(frame: bytes, words: dict[int, int]) -> bytes:
    """The frame with other 16-bit values at these places of its data; negative ones in two's complement."""
    data = bytearray(data_of(frame))
    for place, word in words.items():
        data[place : place + 2] = (word & 0xFFFF).to_bytes(2)
    return answer(frame[1], bytes(data))


def with_byte(frame: bytes, place: int, byte: int) -> bytes:
    data = bytearray(data_of(frame))
    data[place] = byte
    return answer(frame[1], bytes(data))


def with_cell(frame: bytes, cell: int, millivolts: int) -> bytes:
    """The cells' frame with another voltage of one cell, counted from 1."""
    return with_words(frame, {2 * (cell - 1): millivolts})


class Board:
    """Answers reads of the registers that it has a frame for, and refuses the others."""

    def __init__(self, port: int, frames: list[bytes]) -> None:
        self.port = port
        self.frames = {frame[1]: frame for frame in frames}
        self.polls = 0
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()

    def set(self, *frames: bytes) -> None:
        self.frames |= {frame[1]: frame for frame in frames}

    async def plug_in(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def unplug(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for client in self._clients:
            client.close()
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        # The bridge may hang up at any time.
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                # The bridge only reads, and a read is seven bytes.
                request = await reader.readexactly(7)
                register = request[2]
                self.polls += register == TOTALS
                writer.write(self.frames.get(register) or answer(register, b"", NO_SUCH_REGISTER))
        self._clients.discard(writer)
        writer.close()
