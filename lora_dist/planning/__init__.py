"""Memory, traffic and schedule of a training before anything is loaded."""
