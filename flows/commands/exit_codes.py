"""What `prefmill` exits with; `prefmill --help` explains them."""

EXIT_ERROR = 3
EXIT_HELD = 4
