"""Stage 4: what this kernel must hold, and how it gets there.

What comes in: `RuleChanges`, immutable messages of stage 3. What goes out: the host in the desired state, and a
`SyncReport` that says what was done, what is pending and what this host cannot do.
Who calls it: the engine, from one worker thread; one-shot commands (`render`, `plan`).
What it must never do: decide about services, stop at one bad object, write what is not provably ours, or write before
the rules are complete. Dataplanes do not know each other; what they share lies in `base` and `diff`.
Evidence: the fact sheet of each host, named in the package of each dataplane.
"""
