"""What a run leaves behind: its files, its report, and those who show them."""
