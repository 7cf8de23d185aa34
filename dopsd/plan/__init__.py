"""Memory, FLOPs, bytes and seconds of a run, from shapes alone: no weights, no GPU."""

from dopsd.plan.comment import comment
from dopsd.plan.plan import Plan, make_plan
from dopsd.plan.table import summary, table

__all__ = ["Plan", "comment", "make_plan", "summary", "table"]
