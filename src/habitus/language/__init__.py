"""Language models as policies: the decoder, its weights, the tokenizer, generation, and the objectives."""
