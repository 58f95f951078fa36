"""The nftables dataplane for Linux nodes: tables `ip hansa` and `ip6 hansa`, of constant shape.

What comes in: `RuleChanges` from stage 3, and what the kernel says of hansa's own two tables.
What goes out: one atomic transaction per sync and family, its size following the change; `SyncReport`s; text to read.
Who calls it: the engine (`apply.NftablesDataplane`), the command line (`render`, `objects.write`, `trace`).
What it must never do: make a chain, set or rule per service or endpoint; list or change another program's table; wipe
its own to fill it again; start a program.
On what evidence it stands: ARCHITECTURE section 3; service-semantics; every case of tests/cases through `trace` and,
as root, with real packets; the nft program as the second opinion on every byte that is sent.

`objects` are the values and their text, `frame` the chains and sets, `render` makes elements from rules, `plan` orders
differences, `wire` and `apply` bring them to the kernel, `memory` stands in for it, `trace` says what a packet meets.
`needs` and `host` are about the node around the rules: kernel features, settings, another proxy, cleaning up.

>>> from hansa.dataplanes.nftables.apply import NftablesDataplane
>>> from hansa.dataplanes.nftables.memory import MemoryRuleset
>>> from hansa.rules.model import RuleChanges, Surroundings
>>> from hansa.services.model import NodeFacts
>>> nothing = RuleChanges({}, Surroundings(NodeFacts("n1")), complete=True)
>>> NftablesDataplane(MemoryRuleset()).sync(nothing, now=0.0, audit=False).ok
True
"""
