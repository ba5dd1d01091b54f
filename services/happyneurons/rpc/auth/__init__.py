"""Who may call what: TLS, tokens, roles, limits and the audit log of our servers (docs/security.md).

config        the file given to --security
files         files that are read again when they change
certificates  TLS of a server, and callers known by their certificate
tokens, oidc  callers known by a bearer token: a list of hashes, or an identity provider
principal     who calls, for the methods of a service
methods       the role that each method needs
guard         all of it around every call
limits        calls a second and streams of a caller
audit         who decided what
"""
