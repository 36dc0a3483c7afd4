"""Numbers in words that people read."""

import re


def format_seconds(seconds: float) -> str:
    """Return a duration for people: 42 s, 3 min 5 s, 2 h 10 min, 3 d 4 h."""
    seconds = round(seconds)
    for unit, size, smaller, small in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // small} {smaller}"
    if seconds >= 60:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds} s"


def format_bytes(num_bytes: float) -> str:
    """Return a size for people, in powers of 1000: 38.2 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            return f"{num_bytes:,.0f} {unit}" if unit == "B" else f"{num_bytes:,.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError


def parse_bytes(text: str) -> int | None:
    """Return a size that people wrote, in powers of 1000: 500GB, 1.5 TB, 4096; None if it is none."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKMGTP]?)B?\s*", text, re.ASCII)
    if found is None:
        return None
    power = " KMGTP".index(found[2].upper() or " ")
    return int(float(found[1]) * 1000**power)


def counted(count: int, noun: str) -> str:
    """Return a number of things for people: 1 query, 1,440 queries."""
    if count == 1:
        return f"1 {noun}"
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {plural}"
