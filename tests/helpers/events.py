"""TensorBoard's event files, read back."""

from __future__ import annotations

from tensorboardX.proto.event_pb2 import Event


def events(payload: bytes) -> list[Event]:
    """The records of an event file: length, its checksum, data, its checksum."""
    found, at = [], 0
    while at < len(payload):
        size = int.from_bytes(payload[at : at + 8], "little")
        found.append(Event.FromString(payload[at + 12 : at + 12 + size]))
        at += size + 16
    return found


def tracked_images(payload: bytes) -> dict[str, list[int]]:
    """The steps at which there is a picture, by its tag."""
    found: dict[str, list[int]] = {}
    for event in events(payload):
        for value in event.summary.value:
            if value.HasField("image"):
                found.setdefault(value.tag, []).append(event.step)
    return found
