"""From ReasonAQA's files to batches: examples, audio, encoded clips and the collator."""
