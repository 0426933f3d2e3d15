"""The replica set in simulation: the C core, the model it is compared with, and what runs them."""
