"""Language models: architectures, layers, losses, tokenizers, optimizers, generation, weights in and out."""
