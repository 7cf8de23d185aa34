"""Drawing with trained models: previews and generation."""
