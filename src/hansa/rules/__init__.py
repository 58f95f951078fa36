"""Stage 3: what must happen to a packet, on any dataplane.

What comes in: per Service the `ServicePortView`s of stage 2. What goes out: rules, one per frontend, that say for each
origin of a packet whether it is forwarded, dropped or rejected, and why; as `RuleChanges` for dataplanes, and through
`decide` for tests, traces and people. Who calls it: the engine; `hansa.explain`; every dataplane's tests. What it must
never do: select endpoints, know a dataplane, or cost more than what changed. Evidence: service-semantics sections 5, 6
and 10 to 12; where kube-proxy's dataplanes disagree, its nftables mode is followed (section 19).

>>> from hansa.api.change import Upsert
>>> from hansa.net import Packet, Protocol
>>> from hansa.rules.build import build_rules
>>> from hansa.rules.decide import decide
>>> from hansa.rules.ruleset import RuleSet
>>> from hansa.rules.surroundings import make_surroundings
>>> from hansa.services.store import Store
>>> from hansa.services.view import build_view
>>> from hansa.testing import CLUSTER_IP, L1, NODE_FACTS, WEB, Client, config, endpoint_slice
>>> store, rules = Store(config()), RuleSet()
>>> surroundings = make_surroundings(NODE_FACTS, config(), store.service_cidrs)
>>> touched = store.apply(Upsert(WEB)) | store.apply(Upsert(endpoint_slice("web-a", [L1])))
>>> for key in touched.services:
...     changed = rules.replace(key, build_rules(build_view(store, key, NODE_FACTS, config()), config(), surroundings))
>>> verdict = decide(rules, surroundings, Packet(Client.P, CLUSTER_IP, Protocol.TCP, 80))
>>> [str(endpoint) for endpoint in verdict.endpoints], verdict.masquerade, verdict.because.value
(['10.1.1.11:8080'], False, 'traffic policy Cluster: every usable endpoint')
"""
