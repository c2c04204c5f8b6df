"""Files wherever they are, whole or absent; text and tables for people."""
