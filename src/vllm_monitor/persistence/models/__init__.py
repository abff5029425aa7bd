"""Learned models: values as JSON, arrays as safetensors, versions."""
