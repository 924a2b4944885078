"""Parquet files of several writers as one: row groups are copied as they are, the footer tells where each of them lies now.

A footer is a Thrift struct in the compact protocol (apache/thrift, doc/specs/thrift-compact-protocol.md). It is read without knowing its
fields and written as it was, but for the few that count from the beginning of the file (apache/parquet-format, parquet.thrift).
"""

from typing import Any, BinaryIO

_MAGIC = b"PAR1"
_TAIL = 8  # bytes: length of the footer, magic
_ROWS, _GROUPS = 3, 4  # fields of FileMetaData
_COLUMNS, _FILE_OFFSET, _ORDINAL = 1, 5, 7  # of RowGroup
_META_DATA, _PLACES = 3, (2, 4, 6)  # of ColumnChunk: of the chunk, its offset index, its column index
_PAGES = (9, 10, 11, 14)  # of ColumnMetaData: of data, index, dictionary, bloom filter
_NO, _BYTE, _WHOLE, _DOUBLE, _BINARY, _LIST, _STRUCT = 2, 3, (4, 5, 6), 7, 8, 9, 12  # kinds of the compact protocol; 1 is yes, 2 is no

Struct = dict[int, tuple[int, Any]]  # number of a field -> its kind and value


class Joined:
    """One Parquet file, made of whole ones that a writer of the same schema and settings made: its bytes are those of one writer."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._place, self._groups = file, file.write(_MAGIC), list[Struct]()
        self._told: Struct = {}
        self.rows = 0

    def take(self, content: bytes) -> None:
        """Append the row groups of one file."""
        end = len(content) - _TAIL - int.from_bytes(content[-_TAIL:-4], "little")
        told = _Reader(content, end).struct()
        for group in told[_GROUPS][1][1]:
            _move(group, self._place - len(_MAGIC))
            if _ORDINAL in group:
                group[_ORDINAL] = (group[_ORDINAL][0], len(self._groups))
            self._groups.append(group)
        self._place += self._file.write(memoryview(content)[len(_MAGIC) : end])
        self.rows += told[_ROWS][1]
        self._told = self._told or told

    def finish(self) -> None:
        """Write the footer; the file can be read from then on."""
        told = self._told | {_ROWS: (self._told[_ROWS][0], self.rows), _GROUPS: (_LIST, (_STRUCT, self._groups))}
        footer = b"".join(_struct(told))
        self._file.write(footer + len(footer).to_bytes(4, "little") + _MAGIC)


def _move(group: Struct, by: int) -> None:
    """All that counts from the beginning of the file; 0 stands for none."""
    _add(group, (_FILE_OFFSET,), by)
    for column in group[_COLUMNS][1][1]:
        _add(column, _PLACES, by)
        _add(column[_META_DATA][1], _PAGES, by)


def _add(fields: Struct, numbers: tuple[int, ...], by: int) -> None:
    for number in numbers:
        kind, value = fields.get(number, (0, 0))
        if value:
            fields[number] = (kind, value + by)


class _Reader:
    """Reads a struct of the compact protocol."""

    def __init__(self, content: bytes, place: int) -> None:
        self._content, self._place = content, place

    def struct(self) -> Struct:
        found: Struct = {}
        number = 0
        while head := self._bytes(1)[0]:
            number = number + (head >> 4) if head >> 4 else self._signed()
            kind = head & 15
            found[number] = (kind, None if kind <= _NO else self._value(kind))
        return found

    def _value(self, kind: int) -> Any:
        if kind in _WHOLE:
            return self._signed()
        if kind == _BINARY:
            return self._bytes(self._unsigned())
        if kind == _STRUCT:
            return self.struct()
        if kind == _LIST:
            head = self._bytes(1)[0]
            size, of = head >> 4, head & 15
            return of, [self._value(of) for _ in range(self._unsigned() if size == 15 else size)]
        return self._bytes({_BYTE: 1, _DOUBLE: 8}[kind])  # no other kind stands in a footer

    def _bytes(self, count: int) -> bytes:
        self._place += count
        return self._content[self._place - count : self._place]

    def _unsigned(self) -> int:
        found = shift = 0
        while (byte := self._content[self._place]) & 128:
            found |= (byte & 127) << shift
            shift += 7
            self._place += 1
        self._place += 1
        return found | byte << shift

    def _signed(self) -> int:
        found = self._unsigned()
        return found >> 1 ^ -(found & 1)


def _struct(fields: Struct) -> list[bytes]:
    """The bytes of a struct, in pieces."""
    out, before = list[bytes](), 0
    for number, (kind, value) in fields.items():
        step = number - before
        out.append(bytes([step << 4 | kind]) if 0 < step < 16 else bytes([kind]) + _signed(number))
        before = number
        if kind > _NO:
            out += _value(kind, value)
    return [*out, b"\0"]


def _value(kind: int, value: Any) -> list[bytes]:
    if kind in _WHOLE:
        return [_signed(value)]
    if kind == _BINARY:
        return [_unsigned(len(value)), value]
    if kind == _STRUCT:
        return _struct(value)
    if kind == _LIST:
        of, each = value
        head = bytes([len(each) << 4 | of]) if len(each) < 15 else bytes([15 << 4 | of]) + _unsigned(len(each))
        return [head, *(piece for one in each for piece in _value(of, one))]
    return [value]


def _signed(value: int) -> bytes:
    return _unsigned(value << 1 if value >= 0 else (-value << 1) - 1)


def _unsigned(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
