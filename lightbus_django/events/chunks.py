"""Splitting many items into chunks."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def chunks(items: Iterable[Item], size_of: Callable[[Item], int], *, count: int, size: int) -> Iterator[list[Item]]:
    """Yield items in order, in lists of at most `count` items and `size` bytes. A larger item is yielded alone."""
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
