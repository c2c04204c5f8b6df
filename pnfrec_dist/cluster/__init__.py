"""Ray: planning, starting and watching workers."""
