"""One self-contained page on a traced network: its boxes to open and close, its neuron groups, its neurons."""

from weightspace.commands.graph_view.content import page_content
from weightspace.commands.graph_view.page import write_page
from weightspace.commands.graph_view.summary import GroupRow, group_rows, group_table

__all__ = ["GroupRow", "group_rows", "group_table", "page_content", "write_page"]
