"""The same answers as text, tables or JSON.

What comes in: rows, plans, reports and shortfalls as values. What goes out: plain data for JSON, tables for people. Who
calls it: the commands and the demo. What it must never do: compute a choice again; it shows the reasons it is given.
"""
