"""The Windows host networking service (HNS) as Python sees it: HCN schema 2.

What comes in: JSON documents and HRESULTs of `computenetwork.dll`, or of the emulator that stands in for it.
What goes out: typed networks, endpoints and load balancers (`schema`), verbs that close every handle (`client`), errors
by class (`errors`), features by version (`features`), known defects (`quirks`), listings as hnsdiag prints them
(`hnsdiag`).
Who calls it: the Windows dataplane, the lab and the command line.
What it must never do: know a Kubernetes word, keep an object between two calls, leave a handle open, or raise anything
but `HnsError` and `MalformedHnsObject` for what HNS answers.
On what evidence it stands: hcn.md (Microsoft's HCN reference, its Go bindings, public logs); each table names its own.

>>> from hansa.hns.emulator import l2bridge_node
>>> from hansa.hns.client import HnsClient
>>> from hansa.hns.api import HnsKind
>>> node = l2bridge_node()
>>> client = HnsClient(node)
>>> len(client.list_ids(HnsKind.NETWORK, name="hansa-br")), client.calls, node.open_handles
(1, 1, 0)
"""
