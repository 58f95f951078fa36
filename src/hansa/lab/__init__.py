"""Nodes, pods and what a CNI plugin does for them, in one process, and packets between them.

What comes in: API objects, or a lab file. What goes out: emulated hosts as a CNI would have prepared them; a cluster
with hansa at work on each Windows node; connections followed from end to end, and where and why they die.
Who calls it: the demo, `hansa lab`, `hansa trace`, `hansa why`, the commands that work on an emulated node, tests.
What it must never do: service logic. Evidence: hcn.md sections 3 and 6 (what win-bridge, win-overlay and flannel
create), 5 (the packet path).

Read in this order: `cni` (who makes what on a Windows node), `model` and `reading` (a lab, and its file), `cluster` (a
lab that is up), `linux` (a node by its rules), `world` (a connection there and back), `asking` (what people type),
`diagnosis` (what is to blame).
"""
