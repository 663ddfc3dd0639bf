"""From a checkpoint to a folder in Hugging Face's layout."""
