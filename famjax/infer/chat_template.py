"""Chat templates under their earlier name; they are in `famjax/data/chat_template.py`, since trainings use them too."""

from famjax.data.chat_template import ChatTemplate, chat_template, user_message

__all__ = ["ChatTemplate", "chat_template", "user_message"]
