"""What the figures in the README and docs/ were measured with; not collected by pytest."""
