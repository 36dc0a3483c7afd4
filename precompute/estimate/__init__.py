"""What a build would take: bytes, requests, hours."""
