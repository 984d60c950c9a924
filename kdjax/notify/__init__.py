"""Receivers of alarm messages, and their delivery in the background."""
