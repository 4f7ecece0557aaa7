"""Signing without keys to keep: an identity token, a certificate for minutes, a transparency log."""
