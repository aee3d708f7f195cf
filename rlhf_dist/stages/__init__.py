"""What each command trains, driven by one learner."""
