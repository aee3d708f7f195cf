"""What a run would take and where it would go, before anything starts."""
