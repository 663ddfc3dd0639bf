"""Text that every Python installation holds or can make: the demo's raw corpora. Nothing is downloaded."""
