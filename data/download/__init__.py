"""Downloads ReasonAQA and its audio."""
