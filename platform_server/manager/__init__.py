"""The Disk Image Manager: the agent that has a platform's new nodes boot newer images, by policy."""
