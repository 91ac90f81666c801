"""Jobs on a Ray cluster: Ray places and restarts the work, and its results are files that all nodes see."""
