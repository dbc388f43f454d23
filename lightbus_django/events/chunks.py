"""Many events, some at a time."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def chunks(items: Iterable[Item], size_of: Callable[[Item], int], *, count: int, size: int) -> Iterator[list[Item]]:
    """Yield items in their order, in lists of `count` at most and of `size` bytes at most, or of one that is larger."""
    chunk: list[Item] = []
    left = size
    for item in items:
        item_size = size_of(item)
        if chunk and (len(chunk) >= count or item_size > left):
            yield chunk
            chunk, left = [], size
        chunk.append(item)
        left -= item_size
    if chunk:
        yield chunk
