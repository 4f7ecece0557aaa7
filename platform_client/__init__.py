"""What a pipeline needs of the platform: its webhook, and the actions of its operators."""
