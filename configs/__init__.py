"""Studies, claims and launchers' settings that come with the package, as YAML."""
