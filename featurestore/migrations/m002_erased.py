"""Which set of forgotten users the file was last rewritten without, as a digest: it names nobody."""

SQL = "CREATE TABLE erased (users VARCHAR NOT NULL)"
