"""The life of processes: children that answer JSON lines, roles that are started again when they die, servers.

Nothing here knows what a child does. Every child exits when the pipe that its parent holds reaches its end, because a
spawned Python process outlives a killed parent otherwise.
"""
