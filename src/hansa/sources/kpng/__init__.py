"""A brain as a source: another process watches the cluster, and this node is told what concerns it, over gRPC.

What comes in: the node API (`hansa.node.v1`: decisions), KPNG's `localv1` (one node) or `globalv1` (the cluster), or a
file in KPNG's own format. What goes out: `GivenView`s where the brain has done stage 2, `Change`s where it has not;
and, to the brain, what the node has applied and what fails. Who calls it: the engine, and `hansa state`.
What it must never do: take the loss of a brain, or a Reset, for the loss of a Service; let through what a Reset only
repeats; act on a batch before its Sync.
Evidence: KPNG's last state (2023): its messages and field numbers, its paths, the order of its operations.

`wire/` is made by protoc from `proto/`; `local`, `cluster` and `node` turn messages into values and back, for brain and
node alike; `following` is the stream as a machine without sockets, `client` the sockets. Needs the extra `hansa[kpng]`.
"""
