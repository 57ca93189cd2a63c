"""Memory, communication volume and schedule of a training, before anything is loaded."""
