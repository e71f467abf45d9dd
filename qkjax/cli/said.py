"""What was said on the command line."""


def said(**settings) -> dict:
    """The settings that were given."""
    return {name: value for name, value in settings.items() if value is not None}
