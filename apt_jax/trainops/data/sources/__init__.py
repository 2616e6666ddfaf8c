"""Built-in sources: text, jsonl, parquet, array_record; and the choice among them by file name."""
