"""Federation: users of other systems (identity providers) log in here, as Keystone's OS-FEDERATION has it.

An identity provider is a record, which the API changes, and a section [identity.federation.<id>] of the configuration file,
which says how it is reached and has its secrets. A login: a token of the provider (`verification`, over `provider`) gives
claims, these an assertion (`assertion`), a mapping's rules make of it who somebody is here (`mapping`), and that is written
down (`shadow`). From then on the user is one like all others, to tokens, roles, trusts and application credentials.

Invariants:
- A user of a provider is one record, whose id is a hash of domain, provider and the user's id there; nobody else's login
  reaches it.
- Groups that a login puts a user in are memberships that end by themselves, and are replaced by the next login.
- Everything of a provider's users hangs on the provider: disabled or deleted, it ends their tokens at once.
- No token and no secret of a provider is kept, logged or shown.
"""
