"""From sources to files that training and probing read: text to a tokenized corpus, triples to exposures and questions.

Nothing here imports torch or Megatron-Core; every output is a file with a ``schema`` (see each module's docstring).
"""
