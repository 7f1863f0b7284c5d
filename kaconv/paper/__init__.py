"""The published table, and ours beside it: `kaconv table`."""

from typing import TYPE_CHECKING

from kaconv.utils.lazy import lazy_names

if TYPE_CHECKING:
    from kaconv.paper.published import TABLE
    from kaconv.paper.table import TableRow, table_row, table_rows

__all__ = ["TABLE", "TableRow", "table_row", "table_rows"]

_MODULES = {"TABLE": "published", "TableRow": "table", "table_row": "table", "table_rows": "table"}
__getattr__ = lazy_names(__name__, _MODULES)
