"""Other programs that do what lamina does, for tests to compare with."""
