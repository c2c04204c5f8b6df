"""Local and remote files, written atomically; text and tables for people."""
