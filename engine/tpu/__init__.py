"""A train step compiled for TPUs without one: exported, compiled in an environment of its own, read and shown."""
