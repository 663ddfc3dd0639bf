"""Tables and pages that people read about runs and families."""
