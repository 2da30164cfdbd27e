"""The agent: one short-lived process per build that is root inside its own user namespace.

Everything that touches an image's files happens here. The agent imports the standard library,
`ocis2i.syscalls` and the pure tar and layer code, nothing else: it starts in milliseconds and can
be read in one sitting. The parent's side is `ocis2i.isolation.agent`.
"""
