"""Stage 2: what this node knows about each service port.

What comes in: `Change`s of stage 1, into the `Store`, and this machine's addresses. What goes out: per Service the
`ServicePortView`s of both families: the port's frontends, the endpoints chosen under policy Cluster and Local, and the
reason for each one left out. Who calls it: the engine, for the Services that `Store.apply` names; `hansa.explain`, for
any. What it must never do: read a clock or a host, know a dataplane, or look at more than one Service's own data.
Evidence: service-semantics sections 2 to 10; kube-proxy 1.36 is the reference except where hansa is said to differ.

>>> from hansa.api.change import Upsert
>>> from hansa.services.store import Store
>>> from hansa.services.view import build_view
>>> from hansa.testing import L1, NODE_FACTS, WEB, config, endpoint_slice
>>> store = Store(config())
>>> store.apply(Upsert(endpoint_slice("web-a", [L1])))
Touched(services=frozenset(), everything=False)
>>> touched = store.apply(Upsert(WEB))
>>> [str(key) for key in touched.services]
['d/web']
>>> view, = build_view(store, WEB.key, NODE_FACTS, config())
>>> str(view.port.name), [str(endpoint) for endpoint in view.selection.cluster]
('d/web:http', ['10.1.1.11:8080'])
"""
