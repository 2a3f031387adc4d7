"""The plain, published formulations: what ours is compared with."""
