"""Students: trained from the targets of a cache alongside pixels."""
