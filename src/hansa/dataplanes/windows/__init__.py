"""The Windows dataplane: a level-triggered reconciler over HNS.

What comes in: rules, and whatever HNS holds. What goes out: HNS load balancers and endpoints, by way of `HnsClient`.
Who calls it: the engine through `WindowsDataplane`; `render` is also used alone, by people and tests.
What it must never do: write a foreign object, delete an endpoint that is in use or not remote, leave a desired frontend
without load balancer between passes, conclude anything from a silent HNS.
Evidence: windows-proxy sections C and D (content), F (guarantees), H (shape and invariants).

Read `objects` (what), `render` (from rules), `wanted` (all of it, indexed), `observe` (what HNS holds), `ownership`
(what is ours), `plan` (what to do), `execute` (doing it) and `apply` (one pass), in this order.
"""
