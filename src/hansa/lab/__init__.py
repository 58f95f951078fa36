"""Nodes, pods and what a CNI plugin does for them, in one process.

What comes in: API objects. What goes out: emulated hosts as a CNI would have prepared them. Who calls it: the demo, the
commands that work on an emulated node, tests. What it must never do: service logic. Evidence: hcn.md sections 3 and 6
(what win-bridge, win-overlay and flannel create).
"""
