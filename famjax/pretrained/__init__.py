"""Conversion of pretrained models from and to the folders of Hugging Face transformers."""
