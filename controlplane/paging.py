"""Pages of long lists: what may be asked for, and what is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

MAX_PAGE_SIZE = 100
_MAX_PAGE = 10**12  # far beyond any list, and page * page_size still fits SQLite's integers


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a list; `total_pages` is 0 when nothing matches."""

    items: tuple[T, ...]
    page: int
    page_size: int
    total_items: int

    @property
    def total_pages(self) -> int:
        return -(-self.total_items // self.page_size)


def page_faults(page: int, page_size: int) -> dict[str, Sequence[str]]:
    """What is wrong with a page that is asked for, as `ValidationFailed` wants it."""
    rules = {
        "page": (1 <= page <= _MAX_PAGE, "must be 1 or more"),
        "page_size": (1 <= page_size <= MAX_PAGE_SIZE, f"must be 1 to {MAX_PAGE_SIZE}"),
    }
    return {name: [text] for name, (holds, text) in rules.items() if not holds}
