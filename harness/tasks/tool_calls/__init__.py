"""The built-in task of tool calls: its tools and questions, and how answers are read and scored."""
