"""Protocol buffers in text format, read without their schema.

Enough of the format for configuration files of google/ffn: nested messages in `{}` or `<>`, strings
in either quotes (adjacent ones are joined), numbers, names (enum values, true, false), lists in
`[]`, comments. Not read: extensions and Any (`[name] {…}`). What may be in a message, and once or
often, is said by whoever takes fields out of it (:class:`Fields`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from happyneurons.errors import UserError


class Name(str):
    """A bare word: an enum's value, true, false, inf."""

    __slots__ = ()


@dataclass(frozen=True)
class Field:
    """One field as written: a value is str, Name, int, float, or a list of fields for a message."""

    name: str
    line: int
    value: Any


_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|\#[^\n]*)
      | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
      | (?P<number>-?(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?[fF]?)(?![\w.]))
      | (?P<name>-?[A-Za-z_]\w*)
      | (?P<mark>[:{}<>\[\],;])""",
    re.VERBOSE,
)
_ESCAPE = re.compile(rb"\\(?:([0-7]{1,3})|[xX]([0-9a-fA-F]{1,2})|(.))", re.DOTALL)
_SINGLE = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_DEPTH = 32


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    line: int


def parse(text: str, where: str) -> list[Field]:
    """Fields of a message, in their order. Raises UserError with `where` and the line."""
    parser = _Parser(_tokens(text, where), where)
    fields = parser.message("", 0)
    return fields


def _tokens(text: str, where: str) -> list[_Token]:
    tokens, at, line = [], 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise UserError(f"{where}, line {line}: {text[at : at + 20].splitlines()[0]!r} is not protobuf text format")
        kind = str(match.lastgroup)
        if kind != "space":
            tokens.append(_Token(kind, match[0], line))
        line += match[0].count("\n")
        at = match.end()
    return [*tokens, _Token("end", "", line)]


class _Parser:
    def __init__(self, tokens: list[_Token], where: str) -> None:
        self._tokens, self._where, self._at = tokens, where, 0

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _take(self) -> _Token:
        token = self._next
        self._at += 1
        return token

    def _accept(self, marks: str) -> bool:
        if self._next.kind == "mark" and self._next.text in marks:
            self._at += 1
            return True
        return False

    def _wrong(self, expected: str) -> UserError:
        found = repr(self._next.text) if self._next.kind != "end" else "the end"
        return UserError(f"{self._where}, line {self._next.line}: {expected} was expected, found {found}")

    def message(self, closing: str, depth: int) -> list[Field]:
        """Fields up to the closing mark ("": the end), which is taken."""
        if depth > _DEPTH:
            raise self._wrong(f"at most {_DEPTH} nested messages")
        fields: list[Field] = []
        while True:
            if closing and self._accept(closing):
                return fields
            if not closing and self._next.kind == "end":
                return fields
            if self._next.kind != "name":
                raise self._wrong("a field's name" + (f" or {closing!r}" if closing else ""))
            name = self._take()
            colon = self._accept(":")
            for value in self._values(colon, depth):
                fields.append(Field(name.text, name.line, value))
            self._accept(",;")

    def _values(self, colon: bool, depth: int) -> Iterator[Any]:
        if self._accept("["):
            while not self._accept("]"):
                yield self._value(colon, depth)
                if not self._accept(",") and self._next.text != "]":
                    raise self._wrong("',' or ']'")
        else:
            yield self._value(colon, depth)

    def _value(self, colon: bool, depth: int) -> Any:
        for opening, closing in ("{}", "<>"):
            if self._accept(opening):
                return self.message(closing, depth + 1)
        if not colon:
            raise self._wrong("':' or '{'")
        token = self._next
        if token.kind == "string":
            text = b""
            while self._next.kind == "string":
                text += _unescape(self._take().text[1:-1])
            return text.decode("utf-8", errors="replace")
        if token.kind == "number":
            return _number(self._take().text)
        if token.kind == "name":
            return Name(self._take().text)
        raise self._wrong("a value")


def _unescape(text: str) -> bytes:
    def replace(match: re.Match[bytes]) -> bytes:
        octal, hexadecimal, single = match.groups()
        if single is not None:
            return _SINGLE.get(single, single)
        return bytes([int(octal, 8) & 255 if octal else int(hexadecimal, 16)])

    return _ESCAPE.sub(replace, text.encode())


def _number(text: str) -> int | float:
    if "x" in text.lower():
        return int(text, 16)
    bare = text.rstrip("fF")
    return int(bare) if re.fullmatch(r"-?\d+", bare) and bare == text else float(bare)


class Fields:
    """Takes fields out of a message by name and type; `finish` refuses what nobody took.

    kind: the message's name, for errors. Raises UserError with the field's name and line.
    """

    def __init__(self, fields: list[Field], kind: str, where: str) -> None:
        self._fields, self._kind, self.where = list(fields), kind, where

    def error(self, field: Field, problem: str) -> UserError:
        return UserError(f"{self.where}, line {field.line}: {self._kind}.{field.name} {problem}")

    def all(self, name: str) -> list[Field]:
        found = [field for field in self._fields if field.name == name]
        self._fields = [field for field in self._fields if field.name != name]
        return found

    def one(self, name: str) -> Field | None:
        found = self.all(name)
        if len(found) > 1:
            raise self.error(found[1], "is given twice")
        return found[0] if found else None

    def text(self, name: str) -> str | None:
        field = self.one(name)
        if field is None:
            return None
        if not isinstance(field.value, str) or isinstance(field.value, Name):
            raise self.error(field, "must be a string in quotes")
        return field.value

    def word(self, name: str) -> str | None:
        field = self.one(name)
        if field is None:
            return None
        if not isinstance(field.value, Name):
            raise self.error(field, "must be a word without quotes")
        return str(field.value)

    def number(self, name: str) -> float | None:
        field = self.one(name)
        if field is None:
            return None
        if not isinstance(field.value, (int, float)):
            raise self.error(field, "must be a number")
        return float(field.value)

    def integers(self, name: str) -> list[int]:
        fields = self.all(name)
        for field in fields:
            if not isinstance(field.value, int):
                raise self.error(field, "must be a whole number")
        return [field.value for field in fields]

    def integer(self, name: str) -> int | None:
        field = self.one(name)
        if field is not None and not isinstance(field.value, int):
            raise self.error(field, "must be a whole number")
        return None if field is None else int(field.value)

    def flag(self, name: str) -> bool | None:
        field = self.one(name)
        if field is None:
            return None
        if field.value not in ("true", "True", "t", "false", "False", "f", 0, 1):
            raise self.error(field, "must be true or false")
        return field.value in ("true", "True", "t", 1)

    def messages(self, name: str, kind: str) -> list[Fields]:
        fields = self.all(name)
        for field in fields:
            if not isinstance(field.value, list):
                raise self.error(field, "must be a message in { }")
        return [Fields(field.value, kind, self.where) for field in fields]

    def message(self, name: str, kind: str) -> Fields | None:
        field = self.one(name)
        if field is not None and not isinstance(field.value, list):
            raise self.error(field, "must be a message in { }")
        return None if field is None else Fields(field.value, kind, self.where)

    def has(self, name: str) -> bool:
        return any(field.name == name for field in self._fields)

    def refuse(self, name: str, why: str) -> None:
        """Raise UserError if the field is there."""
        for field in self._fields:
            if field.name == name:
                raise self.error(field, why)

    def finish(self) -> None:
        """Raise UserError if fields are left."""
        for field in self._fields:
            raise self.error(field, "is not a field that is known here; check its spelling, or leave it out")
