"""hansa: a Kubernetes service proxy for Windows and Linux nodes.

sources/  ->  services/  ->  rules/  ->  dataplanes/<one>/  ->  host
(change)      (view)         (verdict)   render diff plan apply   (HNS, nftables, ...)
"""

__version__ = "0.1.0"
