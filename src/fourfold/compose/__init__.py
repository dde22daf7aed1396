"""The only place that builds real objects and joins them into a role.

A role is a coroutine that serves until *stop* is set, tells *announce* once it is ready, and leaves nothing behind.
Each has a module of its own, so that a gateway's process never loads what only a worker needs.
"""
