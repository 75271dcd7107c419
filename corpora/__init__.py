"""Raw text to task corpora: documents, units, the sentence store and the four self-supervised formats."""
