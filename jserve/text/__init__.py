"""Text: token ids of text and of chats, and back."""

__all__ = ["chat_template", "tokenizer"]
