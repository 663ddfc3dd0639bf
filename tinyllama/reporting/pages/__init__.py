"""One HTML file that shows a family."""
