"""Where alarms go: receivers of messages, and their delivery in the background."""
