"""A brain: one process watches the cluster and decides for many nodes, which are told over gRPC.

What comes in: `Change`s of any source, as for a proxy; what nodes ask and report. What goes out: to each node what
changes for it and nothing else, as KPNG's `localv1`, or as `hansa.node.v1` with decisions; to others the cluster as
`globalv1`. Who calls it: `hansa brain`; on the node's side `agent` stands beside the engine.
What it must never do: let a slow or silent client cost others anything, send before the sources are complete, send
without being asked, or forget what a client already has, except by a Reset.
Evidence: KPNG's protocol and its defects; kube-proxy's rules are those of `hansa.services`, used as they are.

A view depends on the node by its name and its zone, and mostly by neither: nodes that see the same share one view and
its bytes.

>>> from hansa.api.change import Synced, Upsert
>>> from hansa.api.objects import Kind
>>> from hansa.brain.cluster import Cluster
>>> from hansa.testing import L1, R1, WEB, config, endpoint_slice, node
>>> cluster = Cluster(config())
>>> follower = cluster.follow()
>>> cluster.apply([Upsert(WEB), Upsert(endpoint_slice("web-a", [L1, R1])), *(Synced(kind) for kind in Kind)])
>>> (change,) = follower.take("n1").services
>>> [endpoint.local for endpoint in change.after.view(follower.viewpoint)[0].selection.cluster]
[True, False]
"""
