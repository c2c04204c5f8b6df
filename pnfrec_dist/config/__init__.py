"""Settings: typed, checked, from YAML."""
