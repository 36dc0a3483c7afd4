"""What makes the units of a plan: in this process, in local workers, on a Ray cluster."""
