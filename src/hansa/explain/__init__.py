"""The same answers as text, tables or JSON; and the doctor, which says what is wrong on a host and why.

What comes in: rows, plans, reports and shortfalls as values; what is wanted and what a host holds. What goes out: plain
data for JSON, tables for people, findings. Who calls it: the commands and the demo. What it must never do: compute a
choice again; it shows the reasons it is given, and the doctor asks the planner.
"""
