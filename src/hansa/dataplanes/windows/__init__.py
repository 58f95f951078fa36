"""The Windows dataplane: a level-triggered reconciler over HNS.

What comes in: rules, and whatever HNS holds. What goes out: HNS load balancers and endpoints, by way of `HnsClient`.
Who calls it: the engine through `WindowsDataplane`; `render` is also used alone, by people and tests.
What it must never do: write a foreign object, delete an endpoint that is in use or not remote, leave a desired frontend
without load balancer between passes, conclude anything from a silent HNS.
Evidence: windows-proxy sections C and D (content), F (guarantees), H (shape and invariants).

Read in this order: `objects` (what), `translate` (one rule to load balancers), `wanted` (all of it, indexed), `render`
(the same as plain values), `observe` (what HNS holds), `ownership` (what is ours), `compare` (one place), `plan` (which
steps, in which order), `execute` (doing them), `sight` (when to look at the host) and `apply` (one pass after another).
Taking back everything that hansa made is a sync with complete, empty rules.
"""
