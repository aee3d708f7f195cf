"""Reward model and reference policy: columns added to finished samples."""
