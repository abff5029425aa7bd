"""Scrapes as they come out of hot rows, put together to the matrix of a block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vllm_monitor.persistence.samples.matrices import Matrix, join_matrices
from vllm_monitor.persistence.samples.sample_rows import DecodedScrape

__all__ = ["fitting", "matrix_of_scrapes"]

_MOST_CELLS = 4 << 20
_SPARE_COLUMNS = 64

Layouts = Mapping[int, tuple[int, ...]]


def fitting(scrapes: Sequence[DecodedScrape], layouts: Layouts) -> int:
    """How many of some scrapes go into one block: not too many cells, and not too many of them empty.

    Args:
        scrapes: In order of arrival.
        layouts: The columns of each layout that occurs.
    """
    union: set[int] = set()
    known: set[int] = set()
    widest = 0
    for number, scrape in enumerate(scrapes):
        layout = layouts[scrape.layout_id]
        widest = max(widest, len(layout))
        if scrape.layout_id not in known:
            known.add(scrape.layout_id)
            union.update(layout)
        too_sparse = len(union) > 2 * widest + _SPARE_COLUMNS
        if number and (too_sparse or (number + 1) * max(widest, len(union)) > _MOST_CELLS):
            return number
    return len(scrapes)


def matrix_of_scrapes(scrapes: Sequence[DecodedScrape], layouts: Layouts) -> Matrix:
    """All of some scrapes (at least one), in order of arrival whatever their layouts."""
    parts = []
    for layout_id in dict.fromkeys(scrape.layout_id for scrape in scrapes):
        group = [scrape for scrape in scrapes if scrape.layout_id == layout_id]
        shape = (len(group), len(layouts[layout_id]))
        parts.append(
            Matrix(
                layouts[layout_id],
                np.array([scrape.time_ms for scrape in group], dtype=np.int64),
                np.array([scrape.row_id for scrape in group], dtype=np.int64),
                np.array([scrape.bits for scrape in group], dtype=np.uint64).reshape(shape),
            )
        )
    return join_matrices(parts)
