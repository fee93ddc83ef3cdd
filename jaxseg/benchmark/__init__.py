"""Speed and memory of networks and of the input pipeline, alone and beside PyTorch: `python -m jaxseg.benchmark`.

Networks are measured with jax, flax, optax and numpy alone, so that any machine with a GPU will do.
"""
