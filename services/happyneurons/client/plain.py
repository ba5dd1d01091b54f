"""Messages as plain values for JSON: enums as short names, times as ISO text, durations in seconds."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format, struct_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp


def plain(message: Message) -> Any:
    """A message as a dict with the proto's field names. Messages that are absent are left out."""
    if isinstance(message, Timestamp):
        return message.ToJsonString()
    if isinstance(message, Duration):
        return message.ToMilliseconds() / 1000
    if isinstance(message, struct_pb2.Struct):
        return json_format.MessageToDict(message)
    result: dict[str, Any] = {}
    fields: Any = message.DESCRIPTOR.fields
    for field in fields:
        value = getattr(message, field.name)
        if _is_map(field):
            of_value = field.message_type.fields_by_name["value"]
            result[field.name] = {str(k): _one(of_value, value[k]) for k in sorted(value)}
        elif field.is_repeated:
            result[field.name] = [_one(field, item) for item in value]
        elif field.message_type is None or message.HasField(field.name):
            result[field.name] = _one(field, value)
    return result


def enum_name(field: Any, number: int) -> str:
    """Short name of an enum's value: `JOB_STATE_FAILED` → `failed`; empty for the unspecified one."""
    known = field.enum_type.values_by_number.get(number)
    if known is None:
        return str(number)
    prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return "" if number == 0 else str(known.name).removeprefix(prefix).lower()


def short(message: Message, name: str) -> str:
    """Short name of a message's enum field."""
    return enum_name(message.DESCRIPTOR.fields_by_name[name], getattr(message, name))


def _one(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    return enum_name(field, value) if field.enum_type is not None else value


def _is_map(field: Any) -> bool:
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)
