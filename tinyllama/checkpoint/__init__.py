"""What a run leaves on disk: names, atomic writing, reading back."""
