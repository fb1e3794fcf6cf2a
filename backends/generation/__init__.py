"""What the backends that generate text with transformers share: loading, parameters, sampling."""
