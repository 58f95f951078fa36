"""Stage 1, first half: what Kubernetes says, as typed values.

What comes in: the bytes of a Service, EndpointSlice, Node or ServiceCIDR, or its already parsed manifest. What goes
out: an `Upsert` with a frozen object of only the fields that a proxy reads, defaults settled and addresses canonical,
and the entries that had to be left out; or `MalformedObject`, which names every bad field at once. Who calls it: the
sources. What it must never do: decide whether a Service is handled or an endpoint used. Evidence: service-semantics
sections 1, 4, 5, 7, 8 and 13; the Kubernetes API reference for types and defaults.

>>> from hansa.api.decode import decode_object
>>> from hansa.errors import MalformedObject
>>> from hansa.testing import manifest_service
>>> web = manifest_service("web", external_ips=["203.0.113.7"])
>>> decode_object(web).object.key
ServiceKey(namespace='d', name='web')
>>> web["spec"]["ports"][0].update(port="80", nodePort=70000)
>>> try:
...     decode_object(web)
... except MalformedObject as error:
...     for fault in error.faults:
...         print(fault)
spec.ports[0].port: expected a whole number, got the text '80' (write it without quotes)
spec.ports[0].nodePort: 70000 is not a port (give a number from 1 to 65535)
"""
