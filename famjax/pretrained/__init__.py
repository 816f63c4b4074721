"""Pretrained models in the folders of Hugging Face transformers: what their names mean here, and back."""
