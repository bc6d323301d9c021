"""Items by what they have in common, looked through once however many groups they make."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by their key, in their order."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def by_cell(
    items: Iterable[Item], planned: Callable[[Item], Any] = lambda item: item
) -> dict[tuple[str, str], list[Item]]:
    """The items of each cell (task and optimizer) in their order; `planned` gives what of an item names the two."""
    return grouped(items, lambda item: (planned(item).task, planned(item).optimizer))
