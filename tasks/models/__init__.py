"""Model classes that the tasks add to those of transformers."""
