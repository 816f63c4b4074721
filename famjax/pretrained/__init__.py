"""Conversion of pretrained models between famjax and folders of Hugging Face transformers; import of GGUF files."""
