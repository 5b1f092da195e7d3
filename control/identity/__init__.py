"""Identity: who may do what, and where every service answers. Speaks Keystone v3.

Nouns: domains hold users, groups and projects; a role is assigned to a user or a group on a project, a domain or the
system; services have endpoints in regions; a token is proof of a user and, mostly, of one scope.

Invariants:
- A name is taken by a key of its own, so two things with one name cannot come to be, on whatever replica.
- A token holds ids alone. What it is worth is read anew from the present state: a disabled user, a revoked token or a
  role that was taken back ends it at once on every replica that has seen the change.
- No password, secret or token is kept or logged; records hold argon2id hashes.
- What is deleted takes its assignments and memberships with it; one that a crash leaves behind has no effect.

Keys:
    /identity/projects/<id>                  ProjectRecord; a domain is a project with is_domain
    /identity/users/<id>                     UserRecord
    /identity/groups/<id>                    Group
    /identity/members/<group>/<user>         Membership
    /identity/directory-entries/<id>         DirectoryEntry: whom an id of another system's user or group stands for
    /identity/identity-providers/<id>        IdentityProviderRecord
    /identity/protocols/<provider>/<id>      Protocol
    /identity/mappings|service-providers/<id>   Mapping, ServiceProvider
    /identity/roles/<id>                     Role
    /identity/implications/<prior>/<implied> Implication
    /identity/assignments/<actor type>/<actor>/<target type>/<target>/<role>[/inherited]   Assignment
    /identity/entries/<noun>/<scope>/<name>  Entry: a name that is taken, or a child of a parent
    /identity/services|endpoints|regions/<id>
    /identity/application-credentials/<id>   ApplicationCredentialRecord
    /identity/token-keys/<id>                TokenKey
    /identity/vault-keys/<id>                VaultKey: what credentials and domain configurations are sealed with
    /identity/credentials/<id>               CredentialRecord
    /identity/trusts/<id>                    Trust
    /identity/policies/<id>                  Policy
    /identity/policy-places/<endpoint>/<service>/<region>          PolicyPlace
    /identity/endpoint-groups/<id>           EndpointGroup
    /identity/endpoint-grants/<project>/<"endpoint" or "group">/<id>   EndpointGrant
    /identity/registered-limits|limits/<id>  RegisteredLimit, Limit
    /identity/domain-configs/<domain>        DomainConfigRecord
    /identity/consumers/<id>                 ConsumerRecord
    /identity/request-tokens|access-tokens/<id>                    RequestToken, AccessTokenRecord
    /identity/signed-requests/<hash>         SignedRequestMark, until the request is too old anyway
    /identity/revocations/<audit id>         Revocation, until the token would have ended anyway
"""
