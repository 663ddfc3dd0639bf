"""Pictures of plans, a module each. They bring matplotlib: import them only when one is asked for."""
