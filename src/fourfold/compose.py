"""The only place that builds real objects and joins them into a role."""
