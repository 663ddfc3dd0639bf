"""The door: typed configuration, loaded once and checked across groups."""
