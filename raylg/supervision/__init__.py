"""Ground-truth labels, the matching loss and label-based metrics."""
