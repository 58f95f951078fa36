"""The Kubernetes API server as a source.

What comes in: a `Connection` (`kubeconfig.py`) and the Config. What goes out: batches of Change (`client.py`), decided
by one `Watch` machine per kind (`watch.py`). Who calls it: the engine. What it must never do: let the loss of the
server look like the loss of an object. Reaching it by way of a Service that this proxy itself programs is warned of.
Evidence: service-semantics sections 1 and 17; operations.md section 8; the rest is measured.
"""
