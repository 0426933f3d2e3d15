"""Running a store: what its operator needs and a program that uses it does not. The top floor: nothing imports it."""
