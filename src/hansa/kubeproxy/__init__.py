"""kube-proxy's command line and configuration file, so that hansa can stand where kube-proxy stood.

What comes in: arguments, the documents of a configuration file, facts of the environment. What goes out: all values
resolved (`Completed`) and hansa's `Config`, or everything that is wrong, in kube-proxy's words and with the remedy. Who
calls it: `hansa proxy`; `hansa.config` reads its tables. What it must never do: touch a file, a clock or a socket, or
decide what a service is.
Evidence: operations.md sections 1 to 6 and 20.

>>> from hansa.kubeproxy.flags import parse
>>> parsed = parse(["--cluster_cidr=10.244.0.0/16", "-v2", "--masquerade-all"], windows=False)
>>> [(one.flag.name, one.value) for one in parsed.given]
[('cluster-cidr', '10.244.0.0/16'), ('v', 2), ('masquerade-all', True)]
"""
