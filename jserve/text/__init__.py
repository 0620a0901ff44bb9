"""Text: tokenizers, and templates that turn chats into text."""

__all__ = ["chat_template", "tokenizer"]
