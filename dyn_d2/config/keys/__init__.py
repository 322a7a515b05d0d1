"""Every config key of the platform, with its default and what it does."""
