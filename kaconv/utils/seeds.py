"""Seeds for random numbers that follow from where something stands, and from nothing else."""


def mixed_seed(*numbers: int) -> int:
    """A 63-bit seed for a tuple of numbers: similar tuples give unrelated seeds."""
    mixed = 0
    for number in numbers:  # splitmix64
        mixed = (mixed + number + 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
    return mixed >> 1
