"""Pages of a list, the newest first, read by the one index that has their rows in their order.

`WHERE column = value ORDER BY id DESC LIMIT n` leaves a planner the choice to walk all ids from the newest
and to pass over what has another value. That is fast where the value is everywhere, and goes through the
whole table where it is rare or old. Asked for by range and in the column's order, the rows are found in no
other way than by the index of column and id, entered at the page's first row and left after its last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Select, literal, tuple_
from sqlalchemy.orm import InstrumentedAttribute

_Select = TypeVar("_Select", bound=Select[Any])
Column = InstrumentedAttribute[Any]
_NEWER_THAN_ANY = UUID(int=2**128 - 1)


def newest_first(
    query: _Select, have: Mapping[Column, Any], id_: Column, before: UUID | None, limit: int
) -> _Select:
    """The rows whose columns have these values, below the id `before`. There must be an index of the columns
    in this order and the id.
    """
    *others, (column, value) = have.items()
    least = literal(value, column.type)
    # The bound below is one of the column alone: by PostgreSQL a row of values would not end the walk there.
    return (
        query.where(*(each == wanted for each, wanted in others))
        .where(tuple_(column, id_) < tuple_(least, literal(before or _NEWER_THAN_ANY, id_.type)))
        .where(column >= least)
        .order_by(column.desc(), id_.desc())
        .limit(limit)
    )
