"""Names of caption weights: kind:NAME and language:NAME."""

from ..errors import SettingError


def split_name(name: str) -> tuple[str, str]:
    """Return ``kind`` or ``language`` and the name after the colon.

    Raises:
        SettingError: it is neither.
    """
    what, separator, value = str(name).partition(":")  # YAML's keys may be numbers
    if what not in ("kind", "language") or not separator or not value:
        raise SettingError(
            f"caption_weights has {name!r}, which is not kind:NAME or language:NAME, such as kind:synthetic"
        )
    return what, value
