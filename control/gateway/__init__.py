"""The gateway: every REST call of the cloud, generated at start from proto descriptors; no route is written by hand.

How a request travels:
  app.py        the ASGI application: one exchange from scope to answer
  routes.py     (verb, path) to a Rule, by a trie built from google.api.http and the options of brume.v1
  binding.py    path, query, headers and body to the request message
  codec.py      JSON to and from messages: answers by tables.py and _transcode.pyx, requests by decoding.py; encoding.py is
                the reference that answers are tested against
  answers.py    the response message to status, headers and body
What differs between OpenStack's projects is a named dialect, chosen by the API's family and never by a call:
  faults.py     error bodies          documents.py      version documents       microversions.py  their negotiation
  links.py      links and pages       times.py          timestamps
  apis.py       which API a proto package is, and what its descriptors say of it
  server.py     the HTTP listener
What describes it, from the same rules: openapi.py (schemas.py, errors.py; comments.py has the protos' words), served by
reference.py with page.html; apidocs.py writes docs/api.

Invariants: a client never sees a trace; every answer carries x-openstack-request-id; a request without a valid token
learns nothing of a body but 401; whatever is wrong with a request is found before its handler runs.
"""
